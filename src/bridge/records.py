"""What a session keeps, as named bytes: under a quota, and fit for a store to write down."""

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


class Quota(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much a session may keep; None: as much as it likes.

    programs: records of the kind "program". bytes: names and values of all records together.
    """

    programs: Count | None = None
    bytes: Count | None = None


class Settings(msgspec.Struct, frozen=True):
    """What a store knows of a session besides its records. ttl: seconds."""

    created_at: str
    ttl: float
    quota: Quota


class Records:
    """Values of bytes by kind and name. Changed only by the call that has the session's turn.

    quota: see Quota. size: bytes of all names and values.
    """

    __slots__ = ("_before", "_kept", "_private", "is_stored", "quota", "size")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.size = 0
        self.is_stored = False
        self._kept: dict[str, dict[str, bytes]] | None = None
        self._private: dict[Key, Any] | None = None
        self._before: dict[Key, tuple[bytes | None, Any]] | None = None  # of what is not stored yet

    def of(self, kind: str) -> Mapping[str, bytes]:
        """Return the values by name, oldest first; live."""
        return NOTHING if self._kept is None else self._kept.get(kind, NOTHING)

    def private(self, kind: str, name: str) -> Any:
        """Return what was put beside the value; None where it has come out of a store."""
        return None if self._private is None else self._private.get((kind, name))

    def put(self, kind: str, name: str, value: bytes, private: Any = None) -> None:
        """Keep `value`, and beside it something that lives in memory only, as secrets do.

        Raises QuotaExceeded, and then nothing is changed.
        """
        self.put_all(kind, {name: value})
        if private is not None:
            self._private = {**(self._private or {}), (kind, name): private}

    def put_all(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Keep several values: all or, over the quota, none."""
        self.check(kind, values)
        for name, value in values.items():
            self._note(kind, name)
            self._set(kind, name, value)

    def check(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Raise QuotaExceeded if `put_all` would."""
        before = self.of(kind)
        grown = self.size + sum(_size(name, value) - _size(name, before.get(name)) for name, value in values.items())
        # Who is over a quota that was lowered may still shrink.
        if self.quota.bytes is not None and grown > max(self.quota.bytes, self.size):
            raise _exceeded("bytes", self.quota.bytes, grown)
        if kind == "program" and self.quota.programs is not None:
            programs = len(before) + sum(name not in before for name in values)
            if programs > max(self.quota.programs, len(before)):
                raise _exceeded("programs", self.quota.programs, programs)

    def remove(self, kind: str, name: str) -> None:
        """Keep it no longer; fine where there is none."""
        if name in self.of(kind):
            self._note(kind, name)
            self._set(kind, name, None)

    def changes(self) -> Changes:
        """Return what is not stored yet, of records that are."""
        return {key: self.of(key[0]).get(key[1]) for key in self._before or ()}

    def all(self) -> Changes:
        """Return everything, as the change that makes it."""
        return {(kind, name): value for kind, values in (self._kept or {}).items() for name, value in values.items()}

    def stored(self) -> None:
        """Note that a store has what there is; from now on changes are noted for it."""
        self.is_stored = True
        self._before = None

    def undo(self) -> bool:
        """Take back what is not stored yet; whether there was any."""
        before, self._before = self._before, None
        for (kind, name), (value, private) in (before or {}).items():
            self._set(kind, name, value)
            if private is not None:
                self._private = {**(self._private or {}), (kind, name): private}
        return bool(before)

    def load(self, kept: Changes, quota: Quota) -> None:
        """Take over what a store has."""
        self.quota = quota
        for (kind, name), value in kept.items():
            self._set(kind, name, value)
        self.stored()

    def _note(self, kind: str, name: str) -> None:
        if self.is_stored:
            if self._before is None:
                self._before = {}
            before = self.of(kind).get(name), self.private(kind, name)
            self._before.setdefault((kind, name), before)

    def _set(self, kind: str, name: str, value: bytes | None) -> None:
        if self._kept is None:
            self._kept = {}
        values = self._kept.setdefault(kind, {})
        before = values.pop(name, None) if value is None else values.get(name)
        if value is not None:
            values[name] = value
        if self._private is not None:
            self._private.pop((kind, name), None)
        self.size += _size(name, value) - _size(name, before)


def _size(name: str, value: bytes | None) -> int:
    return 0 if value is None else len(name.encode()) + len(value)


def _exceeded(what: str, limit: int, wanted: int) -> QuotaExceeded:
    return QuotaExceeded(f"the session may keep {limit} {what}, not {wanted}", quota=what, limit=limit, wanted=wanted)


class EncodedValue(msgspec.Struct, frozen=True):
    """Represents a value as it came from the wire, so that hosts of the same format get it back unchanged.

    data: its encoded bytes. format: the name of their format, as in negotiation.
    """

    data: bytes
    format: str

    @property
    def own_format(self) -> Format:
        """Return the format of the bytes. Raises LookupError for one that only a later version knows."""
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
