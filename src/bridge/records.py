"""The records of a session: named values, limited by a quota, that a store can write."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any

import msgspec

from bridge.errors import QuotaExceeded
from bridge.wire.codec import JSON, Format, by_name

Key = tuple[str, str]  # kind, name
Changes = dict[Key, bytes | None]  # None: removed

NOTHING: Mapping[str, bytes] = MappingProxyType({})

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]

# The name of the number of counted records in the protocol, whichever kind the adapter counts.
COUNTED_NAME = "programs"


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"records": COUNTED_NAME}):
    """Represents the limits of a session's records; None: no limit.

    records: the number of records of the kind that the adapter counts. bytes: the length of all names and values.
    """

    records: Count | None = None
    bytes: Count | None = None


class SessionSettings(msgspec.Struct, frozen=True):
    """Represents the settings of a session, which a store has in addition to its records. ttl: seconds."""

    created_at: str
    ttl: float
    quota: Quota


class Records:
    """Holds the records of a session: byte strings by kind and name. Only the call that has the session's turn may
    change them.

    quota: their limits. counted: the kind of records that the quota limits in number; None: no kind. size: the length
    of all names and values, in bytes. is_stored: whether a store has the records too.
    """

    __slots__ = ("_before", "_order", "_private", "_values", "counted", "is_stored", "quota", "size")

    def __init__(self, quota: Quota, counted: str | None = None) -> None:
        self.quota = quota
        self.counted = counted
        self.size = 0
        self.is_stored = False
        self._values: dict[str, dict[str, bytes]] | None = None
        self._private: dict[Key, Any] | None = None
        # The values of the last stored state that have been changed since.
        self._before: dict[Key, tuple[bytes | None, Any]] | None = None
        # The names, in order, of the kinds of which a record has been removed since then.
        self._order: dict[str, list[str]] | None = None

    @property
    def counted_records(self) -> int:
        """Return how many records of the counted kind there are."""
        return 0 if self.counted is None else len(self.of(self.counted))

    def of(self, kind: str) -> Mapping[str, bytes]:
        """Return a view of the values of that kind by name, oldest first; live until `undo`."""
        return NOTHING if self._values is None else self._values.get(kind, NOTHING)

    def private(self, kind: str, name: str) -> Any:
        """Return the object that was put with the value; None if the value comes from a store."""
        return None if self._private is None else self._private.get((kind, name))

    def put(self, kind: str, name: str, value: bytes, private: Any = None) -> None:
        """Set one record. Raises QuotaExceeded, and then changes nothing.

        private: an object to keep with the value in memory but never in a store, for instance one that holds secrets.
        """
        self.put_all(kind, {name: value})
        if private is not None:
            self._private = {**(self._private or {}), (kind, name): private}

    def put_all(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Set several records. Raises QuotaExceeded, and then changes nothing."""
        self.check(kind, values)
        for name, value in values.items():
            self._note(kind, name)
            self._set(kind, name, value)

    def check(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Raise QuotaExceeded if `put_all` would."""
        before = self.of(kind)
        grown = self.size + sum(_size(name, value) - _size(name, before.get(name)) for name, value in values.items())
        # A session that exceeds a lowered quota may still shrink.
        if self.quota.bytes is not None and grown > max(self.quota.bytes, self.size):
            raise _exceeded("bytes", self.quota.bytes, grown)
        if kind == self.counted and self.quota.records is not None:
            count = len(before) + sum(name not in before for name in values)
            if count > max(self.quota.records, len(before)):
                raise _exceeded(COUNTED_NAME, self.quota.records, count)

    def remove(self, kind: str, name: str) -> None:
        """Remove a record if it exists."""
        if name in self.of(kind):
            self._note(kind, name)
            if self.is_stored:
                self._order = self._order or {}
                self._order.setdefault(kind, list(self.of(kind)))
            self._set(kind, name, None)

    def changes(self) -> Changes:
        """Return what has changed since `mark_stored`; nothing if no store has the records."""
        return {key: self.of(key[0]).get(key[1]) for key in self._before or ()}

    def all(self) -> Changes:
        """Return all records, as the changes that create them."""
        return {(kind, name): value for kind, values in (self._values or {}).items() for name, value in values.items()}

    def mark_stored(self) -> None:
        """Note that a store has the current records. From now on `changes` returns what it does not have."""
        self.is_stored = True
        self._before = self._order = None

    def undo(self) -> bool:
        """Revert the changes since `mark_stored`. Return whether there were any."""
        before, self._before = self._before, None
        order, self._order = self._order, None
        for (kind, name), (value, private) in (before or {}).items():
            self._set(kind, name, value)
            if private is not None:
                self._private = {**(self._private or {}), (kind, name): private}
        for kind, names in (order or {}).items():
            values = self.of(kind)
            self._values = {**(self._values or {}), kind: {name: values[name] for name in names if name in values}}
        return bool(before)

    def load(self, records: Changes, quota: Quota) -> None:
        """Add the records that a store has, and adopt the quota that it has."""
        self.quota = quota
        for (kind, name), value in records.items():
            self._set(kind, name, value)
        self.mark_stored()

    def _note(self, kind: str, name: str) -> None:
        if self.is_stored:
            if self._before is None:
                self._before = {}
            before = self.of(kind).get(name), self.private(kind, name)
            self._before.setdefault((kind, name), before)

    def _set(self, kind: str, name: str, value: bytes | None) -> None:
        if self._values is None:
            self._values = {}
        values = self._values.setdefault(kind, {})
        before = values.pop(name, None) if value is None else values.get(name)
        if value is not None:
            values[name] = value
        if self._private is not None:
            self._private.pop((kind, name), None)
        self.size += _size(name, value) - _size(name, before)


def _size(name: str, value: bytes | None) -> int:
    return 0 if value is None else len(name.encode()) + len(value)


def _exceeded(what: str, limit: int, wanted: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"the session's quota is {limit} {what}; this change would need {wanted}",
        quota=what,
        limit=limit,
        wanted=wanted,
    )


class EncodedValue(msgspec.Struct, frozen=True):
    """Represents a value as it came from the wire, so that hosts of the same format get it back unchanged.

    data: its encoded bytes. format: the name of their format, as in negotiation.
    """

    data: bytes
    format: str

    @property
    def own_format(self) -> Format:
        """Return the format of the bytes. Raises LookupError if only a later version of this program knows it."""
        format = by_name(self.format)
        if format is None:
            raise LookupError(f"a value of the unknown format {self.format!r}")
        return format

    def in_format(self, format: Format) -> Any:
        """Return the value for a reply in `format`: its bytes, or decoded if they would make that reply unreadable."""
        own = self.own_format
        if format is own and (format is not JSON or _is_utf8(self.data)):
            return msgspec.Raw(self.data)
        return own.decode_args(msgspec.Raw(self.data), Any, undecodable="replace")


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
