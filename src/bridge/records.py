"""What a session keeps, as named bytes: under a quota, and fit for a store to write down."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from bridge.codec import JSON, Format, by_name
from bridge.errors import QuotaExceeded

Key = tuple[str, str]  # kind, name
Changes = dict[Key, bytes | None]  # None: removed

NOTHING: Mapping[str, bytes] = MappingProxyType({})


class Quota(msgspec.Struct, frozen=True):
    """How much a session may keep; None: as much as it likes.

    programs: records of the kind "program". bytes: names and values of all records together.
    """

    programs: int | None = None
    bytes: int | None = None


class Records:
    """Values of bytes by kind and name. Changed only by the call that has the session's turn.

    quota: see Quota. size: bytes of all names and values. private: what lives in memory only, as
    secrets do, and is not counted.
    """

    __slots__ = ("_before", "_kept", "_private", "is_stored", "quota", "size")

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.size = 0
        self.is_stored = False
        self._kept: dict[str, dict[str, bytes]] | None = None
        self._before: Changes | None = None  # of what is not stored yet
        self._private: dict[str, Any] | None = None

    def of(self, kind: str) -> Mapping[str, bytes]:
        """Values by name, oldest first; live."""
        return NOTHING if self._kept is None else self._kept.get(kind, NOTHING)

    def put(self, kind: str, name: str, value: bytes) -> None:
        """Keep `value`. Raises QuotaExceeded, and then nothing is changed."""
        before = self.of(kind).get(name)
        self._check(kind, name, value, before)
        self._note(kind, name, before)
        self._set(kind, name, value)

    def remove(self, kind: str, name: str) -> None:
        """Keep it no longer; fine where there is none."""
        before = self.of(kind).get(name)
        if before is not None:
            self._note(kind, name, before)
            self._set(kind, name, None)

    @property
    def private(self) -> dict[str, Any]:
        if self._private is None:
            self._private = {}
        return self._private

    def changes(self) -> Changes:
        """What is not stored yet, of records that are."""
        return {key: self.of(key[0]).get(key[1]) for key in self._before or ()}

    def all(self) -> Changes:
        """Everything, as the change that makes it."""
        return {
            (kind, name): value
            for kind, values in (self._kept or {}).items()
            for name, value in values.items()
        }

    def stored(self) -> None:
        """A store has what there is; from now on changes are noted for it."""
        self.is_stored = True
        self._before = None

    def undo(self) -> bool:
        """Take back what is not stored yet; whether there was any."""
        before, self._before = self._before, None
        for (kind, name), value in (before or {}).items():
            self._set(kind, name, value)
        return bool(before)

    def load(self, kept: Changes, quota: Quota) -> None:
        """Take over what a store has."""
        self.quota = quota
        for (kind, name), value in kept.items():
            self._set(kind, name, value)
        self.stored()

    def _note(self, kind: str, name: str, before: bytes | None) -> None:
        if self.is_stored:
            if self._before is None:
                self._before = {}
            self._before.setdefault((kind, name), before)

    def _set(self, kind: str, name: str, value: bytes | None) -> None:
        if self._kept is None:
            self._kept = {}
        values = self._kept.setdefault(kind, {})
        before = values.pop(name, None) if value is None else values.get(name)
        if value is not None:
            values[name] = value
        self.size += _size(name, value) - _size(name, before)

    def _check(self, kind: str, name: str, value: bytes, before: bytes | None) -> None:
        grown = self.size + _size(name, value) - _size(name, before)
        # Who is over a quota that was lowered may still shrink.
        if self.quota.bytes is not None and grown > max(self.quota.bytes, self.size):
            raise _exceeded("bytes", self.quota.bytes, grown)
        if kind == "program" and before is None and self.quota.programs is not None:
            programs = len(self.of(kind)) + 1
            if programs > self.quota.programs:
                raise _exceeded("programs", self.quota.programs, programs)


def _size(name: str, value: bytes | None) -> int:
    return 0 if value is None else len(name) + len(value)


def _exceeded(what: str, limit: int, wanted: int) -> QuotaExceeded:
    return QuotaExceeded(
        f"the session may keep {limit} {what}, not {wanted}", quota=what, limit=limit, wanted=wanted
    )


class Kept(msgspec.Struct, frozen=True):
    """A value from the wire, as it came: it goes back unchanged to who speaks the same format.

    data: its own bytes. format: a name, as in negotiation.
    """

    data: bytes
    format: str

    @classmethod
    def of(cls, raw: msgspec.Raw, format: Format) -> Kept:
        """Raises InvalidArgs for what is no value of that format."""
        format.decode_args(raw, Any, undecodable="replace")
        return cls(bytes(raw), format.name)

    @property
    def own_format(self) -> Format:
        """Raises LookupError where a later version has written it."""
        found = by_name(self.format)
        if found is None:
            raise LookupError(f"a value of the unknown format {self.format!r}")
        return found

    def in_format(self, format: Format) -> Any:
        """It, for a reply in `format`; decoded where its bytes would make that unreadable."""
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
