"""Durable sessions in one SQLite file, which any number of workers may share.

Epochs come from one counter in the file, so that none is used twice.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge import errors
from bridge.records import Changes, Quota, SessionSettings
from bridge.worker.stores.group_commit import GroupCommit
from bridge.worker.stores.protocol import OnTaken, StoredSession, TakenSession
from bridge.worker.stores.sqlite import schema
from bridge.worker.stores.sqlite.files import Files
from bridge.worker.stores.sqlite.rows import checked, damaged, read_records, write_records

# Errors of the file as a whole: a smaller transaction would fail with them too.
WHOLE_FILE_ERRORS = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB),
}

# SQLite raises UnicodeError for a damaged text.
FAILURES = (sqlite3.Error, OSError, UnicodeError, errors.StoreFailed)


def open_store(location: str) -> SQLiteStore:
    """Open the store in the file at the path `location`. Raises StoreFailed."""
    if location == ":memory:":
        raise errors.StoreFailed("the store sqlite::memory: would not be durable; use sqlite:PATH")
    return SQLiteStore(Path(location))


class SQLiteStore:
    """Stores sessions in the SQLite file at `path`, which is created if it does not exist. See `Store` for the methods.

    Raises StoreFailed for a file that is damaged, newer than this program, not a store, or not writable.

    commits: the group commit of its writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.commits = GroupCommit(self._transact, _affects_all, _failure)
        self._reading = threading.Lock()
        self._connections: list[sqlite3.Connection] = []
        try:
            self._files = Files(path)
            self._writer = self._connect()
            self._connections.append(self._writer)
            schema.prepare(self._writer, path)
            self._reader = self._connect()
            self._connections.append(self._reader)
            self._files.opened()
        except FAILURES as error:
            for db in self._connections:
                db.close()
            if isinstance(error, errors.StoreFailed):
                raise
            reason = error.strerror if isinstance(error, OSError) else _text(error)
            raise errors.StoreFailed(f"the store {path}: {reason}") from error

    def create(self, session_id: str, settings: SessionSettings, records: Changes) -> int:
        def change(db: sqlite3.Connection) -> int:
            if db.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone():
                raise errors.SessionLost.of(session_id)
            epoch = _next_epoch(db)
            columns = (session_id, epoch, *_columns(settings))
            (number,) = db.execute(
                "INSERT INTO sessions (id, epoch, created_at, ttl_s, programs, bytes, checksum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING number",
                (*columns, schema.session_checksum(*columns)),
            ).fetchone()
            write_records(db, number, session_id, records)
            return epoch

        return self.commits.run(change)

    def take(self, session_id: str) -> TakenSession | None:
        # Most sessions are not durable: the search for one must not wait for writers.
        if not self._read("SELECT 1 FROM sessions WHERE id = ?", (session_id,)):
            return None

        def change(db: sqlite3.Connection) -> TakenSession | None:
            row = db.execute(
                "SELECT number, checksum, epoch, created_at, ttl_s, programs, bytes FROM sessions WHERE id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                return None
            number, checksum, epoch, *settings = row
            if schema.session_checksum(session_id, epoch, *settings) != checksum:
                raise damaged(f"session {session_id[:100]!r}")
            records = read_records(db, number, session_id)
            epoch = _next_epoch(db)
            db.execute(
                "UPDATE sessions SET epoch = ?, checksum = ? WHERE number = ?",
                (epoch, schema.session_checksum(session_id, epoch, *settings), number),
            )
            created_at, ttl, counted_records, size = settings
            return TakenSession(epoch, SessionSettings(created_at, ttl, Quota(counted_records, size)), records)

        return self.commits.run(change)

    def is_owner(self, session_id: str, epoch: int) -> bool:
        return bool(self._read("SELECT 1 FROM sessions WHERE id = ? AND epoch = ?", (session_id, epoch)))

    def write(self, session_id: str, epoch: int, changes: Changes, settings: SessionSettings | None = None) -> None:
        def change(db: sqlite3.Connection) -> None:
            number = _owned(db, session_id, epoch)
            write_records(db, number, session_id, changes)
            if settings is not None:
                columns = _columns(settings)
                db.execute(
                    "UPDATE sessions SET created_at = ?, ttl_s = ?, programs = ?, bytes = ?, checksum = ?"
                    " WHERE number = ?",
                    (*columns, schema.session_checksum(session_id, epoch, *columns), number),
                )

        self.commits.run(change)

    def drop(self, session_id: str, counted: str | None) -> int:
        def change(db: sqlite3.Connection) -> int:
            (count,) = db.execute(
                "SELECT count(*) FROM records JOIN sessions ON session = number WHERE id = ? AND kind = ?",
                (session_id, counted),
            ).fetchone()
            db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
            return int(count)

        return self.commits.run(change)

    def find(self, session_id: str, counted: str | None) -> StoredSession | None:
        described = self._describe("WHERE id = ?", (session_id,), counted)
        return described[0] if described else None

    def list_sessions(self, limit: int, counted: str | None) -> tuple[list[StoredSession], int]:
        ((total,),) = self._read("SELECT count(*) FROM sessions", ())
        return self._describe("ORDER BY id LIMIT ?", (limit,), counted), total

    def names(self, session_id: str, kind: str) -> list[str]:
        rows = self._read(
            "SELECT name FROM records JOIN sessions ON session = number"
            " WHERE id = ? AND kind = ? ORDER BY records.rowid",
            (session_id, kind),
        )
        return [name for (name,) in rows]

    def value(self, session_id: str, kind: str, name: str) -> bytes | None:
        rows = self._read(
            "SELECT value, records.checksum FROM records JOIN sessions ON session = number"
            " WHERE id = ? AND kind = ? AND name = ?",
            (session_id, kind, name),
        )
        return checked((session_id, kind, name), *rows[0]) if rows else None

    def watch(self, on_taken: OnTaken) -> None:
        """Do nothing: SQLite cannot tell."""

    def close(self) -> None:
        """Close the file. When the last worker has closed it, there is a single file, without a journal."""
        with contextlib.suppress(errors.StoreFailed):  # closed already
            self.commits.run(lambda db: None)
        with self._reading:
            for db in self._connections:
                db.close()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self._files.uri,
            uri=True,
            timeout=schema.BUSY_TIMEOUT,
            isolation_level=None,
            check_same_thread=False,
        )

    def _read(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """Return what is on disk, without waiting for writers."""
        try:
            self._files.check()
            with self._reading:
                return self._reader.execute(query, values).fetchall()
        except FAILURES as error:
            raise _failure(error) from error

    def _describe(self, which: str, values: tuple[Any, ...], counted: str | None) -> list[StoredSession]:
        query = (
            "SELECT id, epoch, created_at, ttl_s, count(*) FILTER (WHERE kind = ?),"
            " coalesce(sum(length(CAST(name AS BLOB)) + length(value)), 0)"
            f" FROM (SELECT * FROM sessions {which}) LEFT JOIN records ON session = number"
            " GROUP BY number ORDER BY id"
        )
        try:
            self._files.check()
            # On a new connection, because a long listing must not delay other readers.
            with contextlib.closing(self._connect()) as db:
                return [StoredSession(*row) for row in db.execute(query, (counted, *values))]
        except FAILURES as error:
            raise _failure(error) from error

    def _transact(self, apply: Callable[[sqlite3.Connection], None]) -> None:
        db = self._writer
        self._files.check()
        db.execute("BEGIN IMMEDIATE")
        try:
            apply(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._files.check()  # again: what is acknowledged must be there after a restart


def _affects_all(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF  # without the extended code
    return code in WHOLE_FILE_ERRORS or isinstance(error, errors.StoreFailed)


def _next_epoch(db: sqlite3.Connection) -> int:
    row = db.execute("UPDATE epochs SET last = last + 1 RETURNING last").fetchone()
    if row is None:
        raise damaged("the counter of epochs")
    return int(row[0])


def _owned(db: sqlite3.Connection, session_id: str, epoch: int) -> int:
    """Return the number of the session's row. Raise SessionLost unless `epoch` is its last."""
    row = db.execute("SELECT number FROM sessions WHERE id = ? AND epoch = ?", (session_id, epoch)).fetchone()
    if row is None:
        raise errors.SessionLost.of(session_id)
    return int(row[0])


def _columns(settings: SessionSettings) -> tuple[Any, ...]:
    quota = settings.quota
    return settings.created_at, settings.ttl, quota.records, quota.bytes


def _failure(error: Exception) -> errors.StoreFailed:
    if isinstance(error, errors.StoreFailed):
        return error
    return errors.StoreFailed(f"the store failed: {_text(error)}")


def _text(error: Exception) -> str:
    """Return the error in one line. SQLite quotes what is in a damaged file, which need not be UTF-8."""
    if isinstance(error, UnicodeError):
        return "the file is damaged: it holds text that is not UTF-8"
    return " ".join(str(error).split())[:500]
