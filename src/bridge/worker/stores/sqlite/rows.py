"""Reads and writes the records of a session, each with its checksum."""

from __future__ import annotations

import sqlite3

from bridge import errors
from bridge.records import Changes
from bridge.worker.stores.sqlite.schema import record_checksum


def read_records(db: sqlite3.Connection, number: int, session_id: str) -> Changes:
    """Return all records of a session. Raises StoreFailed if one is damaged or missing."""
    records: Changes = {}
    total = _total(db, number)
    for kind, name, value, checksum in db.execute(
        "SELECT kind, name, value, checksum FROM records WHERE session = ? ORDER BY rowid",
        (number,),
    ):
        records[kind, name] = checked((session_id, kind, name), value, checksum)
        total ^= checksum
    if total:
        raise damaged(f"the set of records of session {session_id[:100]!r}")
    return records


def checked(key: tuple[str, str, str], value: bytes, checksum: int) -> bytes:
    """Return the value of the record `key` (session id, kind, name). Raises StoreFailed if it is damaged."""
    if not isinstance(value, bytes) or record_checksum(*key, value) != checksum:
        session_id, kind, name = key
        raise damaged(f"{kind} {name[:100]!r} of session {session_id[:100]!r}")
    return value


def write_records(db: sqlite3.Connection, number: int, session_id: str, changes: Changes) -> None:
    """Write the changed records and delete the removed ones (those whose value is None)."""
    before = total = _total(db, number)
    for (kind, name), value in changes.items():
        key = (number, kind, name)
        for (checksum,) in db.execute("SELECT checksum FROM records WHERE session = ? AND kind = ? AND name = ?", key):
            total ^= checksum
        if value is None:
            db.execute("DELETE FROM records WHERE session = ? AND kind = ? AND name = ?", key)
            continue
        checksum = record_checksum(session_id, kind, name, value)
        total ^= checksum
        db.execute(
            "INSERT INTO records (session, kind, name, value, checksum) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (session, kind, name)"
            " DO UPDATE SET value = excluded.value, checksum = excluded.checksum",
            (*key, value, checksum),
        )
    if total != before:
        db.execute("UPDATE sessions SET records_checksum = ? WHERE number = ?", (total, number))


def _total(db: sqlite3.Connection, number: int) -> int:
    """Return the checksum of all records of the session, as ChecksumOfAll computes it."""
    (total,) = db.execute("SELECT records_checksum FROM sessions WHERE number = ?", (number,)).fetchone()
    return int(total)


def damaged(what: str) -> errors.StoreFailed:
    """Return the error for a part of the store that does not match its checksum."""
    return errors.StoreFailed(f"the store is damaged: {what} does not match its checksum")
