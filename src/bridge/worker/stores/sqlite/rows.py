"""The records of sessions in a store's file: read, checked, written."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bridge import errors
from bridge.records import Changes, Quota, Records
from bridge.worker.stores.sqlite.schema import record_checksum

Read = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]


def read_records(db: sqlite3.Connection, number: int, session_id: str) -> Changes:
    """Return all records of a session. Raises StoreFailed for a damaged or a missing one."""
    records: Changes = {}
    total = _total(db, number)
    for kind, name, value, checksum in db.execute(
        "SELECT kind, name, value, checksum FROM records WHERE session = ? ORDER BY rowid",
        (number,),
    ):
        records[kind, name] = _checked((session_id, kind, name), value, checksum)
        total ^= checksum
    if total:
        raise damaged(f"the set of records of session {session_id[:100]!r}")
    return records


def _checked(place: tuple[str, str, str], value: bytes, checksum: int) -> bytes:
    if not isinstance(value, bytes) or record_checksum(*place, value) != checksum:
        raise damaged(f"{place[1]} {place[2][:100]!r} of session {place[0][:100]!r}")
    return value


def write_records(db: sqlite3.Connection, number: int, session_id: str, changes: Changes) -> None:
    """Write what was put, and remove what was removed."""
    before = total = _total(db, number)
    for (kind, name), value in changes.items():
        place = (number, kind, name)
        for (checksum,) in db.execute(
            "SELECT checksum FROM records WHERE session = ? AND kind = ? AND name = ?", place
        ):
            total ^= checksum
        if value is None:
            db.execute("DELETE FROM records WHERE session = ? AND kind = ? AND name = ?", place)
            continue
        checksum = record_checksum(session_id, kind, name, value)
        total ^= checksum
        db.execute(
            "INSERT INTO records (session, kind, name, value, checksum) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (session, kind, name)"
            " DO UPDATE SET value = excluded.value, checksum = excluded.checksum",
            (*place, value, checksum),
        )
    if total != before:
        db.execute("UPDATE sessions SET records_checksum = ? WHERE number = ?", (total, number))


def _total(db: sqlite3.Connection, number: int) -> int:
    """Return what the checksums of all records of a session must come to, see ChecksumOfAll."""
    (total,) = db.execute("SELECT records_checksum FROM sessions WHERE number = ?", (number,)).fetchone()
    return int(total)


def damaged(what: str) -> errors.StoreFailed:
    """Return the error for what does not have its checksum."""
    return errors.StoreFailed(f"the store is damaged: {what} is not what was written")


class StoredRecords(Records):
    """The records of a session that may be another worker's. Cannot be changed."""

    __slots__ = ("_read", "_session_id")

    def __init__(self, session_id: str, read: Read) -> None:
        super().__init__(Quota())
        self._session_id = session_id
        self._read = read

    def of(self, kind: str) -> Mapping[str, bytes]:
        """Return the values of that kind, each read when it is asked for. Raises StoreFailed."""
        return _StoredValues(self._session_id, kind, self._read)

    def put_all(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Raises NotAllowed."""
        raise errors.NotAllowed(f"session {self._session_id!r} can only be read here")

    def remove(self, kind: str, name: str) -> None:
        """Raises NotAllowed."""
        self.put_all(kind, {})


class _StoredValues(Mapping[str, bytes]):
    __slots__ = ("_read", "_where")

    def __init__(self, session_id: str, kind: str, read: Read) -> None:
        self._where = (session_id, kind)
        self._read = read

    def __getitem__(self, name: str) -> bytes:
        rows = self._read(
            "SELECT value, records.checksum FROM records JOIN sessions ON session = number"
            " WHERE id = ? AND kind = ? AND name = ?",
            (*self._where, name),
        )
        if not rows:
            raise KeyError(name)
        ((value, checksum),) = rows
        return _checked((*self._where, name), value, checksum)

    def __iter__(self) -> Iterator[str]:
        rows = self._read(
            "SELECT name FROM records JOIN sessions ON session = number"
            " WHERE id = ? AND kind = ? ORDER BY records.rowid",
            self._where,
        )
        return iter([name for (name,) in rows])

    def __len__(self) -> int:
        return len(list(iter(self)))
