"""Durable sessions in one SQLite file, which any number of workers may share.

A session belongs to the worker that opened it last: opening raises its epoch, every write names
the epoch that it was opened with, and one of an older epoch writes nothing. Epochs come from one
counter of the file, so that one is never given twice, also not to a session of an old name.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bridge import errors
from bridge.records import Changes, Quota, Settings
from bridge.worker.stores.sqlite import schema
from bridge.worker.stores.sqlite.files import Files
from bridge.worker.stores.sqlite.rows import StoredRecords, damaged, read_records, write_records
from bridge.worker.stores.sqlite.schema import prepare, session_checksum

# Errors that no smaller transaction would be spared.
OF_THE_FILE = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB),
}

# What SQLite and its errors raise.
FAILURES = (sqlite3.Error, OSError, UnicodeError, errors.StoreFailed)

T = TypeVar("T")


class Opened(msgspec.Struct, frozen=True):
    """A session and what it keeps, now owned by who opened it under `epoch`."""

    epoch: int
    settings: Settings
    records: Changes


class Store:
    """Sessions in the file at `path`, made if missing.

    All methods may be called from any thread, and return when what they changed is on disk. Calls
    that come while the disk is busy share the next transaction. Raises StoreFailed: at once for a
    file that is damaged, of a later version, or not to be written; from any method for a full or
    failing disk, and then nothing of that call is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._changing = threading.Lock()
        self._reading = threading.Lock()
        self._waiting: list[_Task] = []
        self._is_busy = False
        self._connections: list[sqlite3.Connection] = []
        self.transactions = 0
        try:
            self._files = Files(path)
            self._db = self._connect()
            self._connections.append(self._db)
            prepare(self._db, path)
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

    def is_owner(self, session_id: str, epoch: int) -> bool:
        """Whether nobody has opened the session since it got that epoch."""
        rows = self._read("SELECT 1 FROM sessions WHERE id = ? AND epoch = ?", (session_id, epoch))
        return bool(rows)

    def open(self, session_id: str) -> Opened | None:
        """Take the session over from whoever has it; None where there is none of that id."""

        # Most sessions are not durable, and must not wait for those who write.
        if not self._read("SELECT 1 FROM sessions WHERE id = ?", (session_id,)):
            return None

        def work(db: sqlite3.Connection) -> Opened | None:
            row = db.execute(
                "SELECT number, checksum, epoch, created_at, ttl_s, programs, bytes FROM sessions WHERE id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                return None
            number, checksum, epoch, *settings = row
            if session_checksum(session_id, epoch, *settings) != checksum:
                raise damaged(f"the session {session_id[:100]!r}")
            records = read_records(db, number, session_id)
            epoch = _next_epoch(db)
            db.execute(
                "UPDATE sessions SET epoch = ?, checksum = ? WHERE number = ?",
                (epoch, session_checksum(session_id, epoch, *settings), number),
            )
            created_at, ttl, programs, size = settings
            return Opened(epoch, Settings(created_at, ttl, Quota(programs, size)), records)

        return self._do(work)

    def create(self, session_id: str, settings: Settings, records: Changes) -> int:
        """Make a session; its epoch. Raises SessionLost where another worker has made one."""

        def work(db: sqlite3.Connection) -> int:
            if db.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone():
                raise errors.SessionLost.of(session_id)
            epoch = _next_epoch(db)
            columns = (session_id, epoch, *_columns(settings))
            (number,) = db.execute(
                "INSERT INTO sessions (id, epoch, created_at, ttl_s, programs, bytes, checksum)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) RETURNING number",
                (*columns, session_checksum(*columns)),
            ).fetchone()
            write_records(db, number, session_id, records)
            return epoch

        return self._do(work)

    def write(self, session_id: str, epoch: int, changes: Changes) -> None:
        """Write all of `changes`, or nothing. Raises SessionLost where the epoch is not the
        last."""
        self._do(lambda db: write_records(db, _owned(db, session_id, epoch), session_id, changes))

    def configure(self, session_id: str, epoch: int, settings: Settings) -> None:
        """Change the settings of a session. Raises SessionLost."""

        def work(db: sqlite3.Connection) -> None:
            columns = _columns(settings)
            db.execute(
                "UPDATE sessions SET created_at = ?, ttl_s = ?, programs = ?, bytes = ?, checksum = ? WHERE number = ?",
                (
                    *columns,
                    session_checksum(session_id, epoch, *columns),
                    _owned(db, session_id, epoch),
                ),
            )

        self._do(work)

    def delete(self, session_id: str) -> int:
        """Drop the session, whoever has it; how many programs it had."""

        def work(db: sqlite3.Connection) -> int:
            (programs,) = db.execute(
                "SELECT count(*) FROM records JOIN sessions ON session = number WHERE id = ? AND kind = 'program'",
                (session_id,),
            ).fetchone()
            db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
            return int(programs)

        return self._do(work)

    def records(self, session_id: str) -> StoredRecords:
        """Return the records of a session as they are on disk, read without opening it."""
        return StoredRecords(session_id, self._read)

    def find(self, session_id: str) -> dict[str, Any] | None:
        """Return what can be said of a session without opening it: session_id, epoch,
        created_at, ttl_s, programs, bytes."""
        rows = self._list("WHERE id = ?", (session_id,))
        return rows[0] if rows else None

    def list_sessions(self, limit: int) -> tuple[list[dict[str, Any]], int]:
        """Return what can be said of at most `limit` sessions, by id; and how many there are."""
        ((total,),) = self._read("SELECT count(*) FROM sessions", ())
        return self._list("ORDER BY id LIMIT ?", (limit,)), total

    def _list(self, which: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        """Read what can be said of sessions, on a connection of its own: it may take long."""
        query = (
            "SELECT id, epoch, created_at, ttl_s, count(*) FILTER (WHERE kind = 'program'),"
            " coalesce(sum(length(CAST(name AS BLOB)) + length(value)), 0)"
            f" FROM (SELECT * FROM sessions {which}) LEFT JOIN records ON session = number"
            " GROUP BY number ORDER BY id"
        )
        names = ("session_id", "epoch", "created_at", "ttl_s", "programs", "bytes")
        try:
            self._files.check()
            with contextlib.closing(self._connect()) as db:
                return [dict(zip(names, row, strict=True)) for row in db.execute(query, values)]
        except FAILURES as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Close the file; nothing works afterwards. The last one to close leaves a single file
        behind."""
        with contextlib.suppress(errors.StoreFailed):  # closed already
            self._do(lambda db: None)
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
        """Return what is on disk; beside the writers, who are not waited for."""
        try:
            self._files.check()
            with self._reading:
                return self._reader.execute(query, values).fetchall()
        except FAILURES as error:
            raise _failed(error) from error

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of `work` once it is on disk, in a transaction with what others
        want."""
        task = _Task(work)
        with self._changing:
            self._waiting.append(task)
            is_first = not self._is_busy
            self._is_busy = True
        if not is_first:
            task.wait()
        if not task.is_done:
            self._lead()
        return task.outcome()  # type: ignore[no-any-return]

    def _lead(self) -> None:
        """Commit all that wait, then wake one of those that came meanwhile to do the same."""
        with self._changing:
            batch, self._waiting = self._waiting, []
        try:
            self._commit(batch)
        finally:
            with self._changing:
                self._is_busy = bool(self._waiting)
                if self._is_busy:
                    self._waiting[0].wake()
            for task in batch:
                if not task.is_done:  # what was raised is no Exception
                    task.fail(RuntimeError("the transaction was broken off"))
                task.wake()

    def _commit(self, batch: list[_Task]) -> None:
        try:
            self._transaction(batch)
        except Exception as error:
            # One that is too much for the disk must not cost the others their place; a disk that
            # fails, or a file that others hold, does so for all.
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            is_of_the_file = code in OF_THE_FILE or isinstance(error, errors.StoreFailed)
            if len(batch) > 1 and not is_of_the_file:
                for task in batch:
                    self._commit([task])
                return
            for task in batch:
                task.fail(error)
            return
        for task in batch:
            task.is_done = True

    def _transaction(self, batch: list[_Task]) -> None:
        db = self._db
        self._files.check()
        db.execute("BEGIN IMMEDIATE")
        try:
            for task in batch:
                task.run(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self._files.check()  # again: what is acknowledged must be there after a restart
        self.transactions += 1


class _Task:
    """What one caller wants of a transaction."""

    __slots__ = ("_error", "_result", "_turn", "_work", "is_done")

    def __init__(self, work: Callable[[sqlite3.Connection], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: errors.BridgeError | None = None
        self._turn = threading.Lock()
        self._turn.acquire()
        self.is_done = False

    def wait(self) -> None:
        """Wait until it is done, or its turn to lead."""
        self._turn.acquire()

    def wake(self) -> None:
        self._turn.release()

    def run(self, db: sqlite3.Connection) -> None:
        """Run it. An error of the wire's table is an answer: it is raised before anything is
        written."""
        self._error = None
        try:
            self._result = self._work(db)
        except errors.BridgeError as error:
            self._error = error

    def fail(self, error: Exception) -> None:
        self._error = _failed(error)
        self.is_done = True

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result


def _next_epoch(db: sqlite3.Connection) -> int:
    row = db.execute("UPDATE epochs SET last = last + 1 RETURNING last").fetchone()
    if row is None:
        raise damaged("the counter of epochs")
    return int(row[0])


def _owned(db: sqlite3.Connection, session_id: str, epoch: int) -> int:
    row = db.execute("SELECT number FROM sessions WHERE id = ? AND epoch = ?", (session_id, epoch)).fetchone()
    if row is None:
        raise errors.SessionLost.of(session_id)
    return int(row[0])


def _columns(settings: Settings) -> tuple[Any, ...]:
    quota = settings.quota
    return settings.created_at, settings.ttl, quota.programs, quota.bytes


def _failed(error: Exception) -> errors.StoreFailed:
    if isinstance(error, errors.StoreFailed):
        return error
    return errors.StoreFailed(f"the store failed: {_text(error)}")


def _text(error: Exception) -> str:
    """Return the error in one line. SQLite repeats what is in a damaged file, which need not be
    UTF-8."""
    if isinstance(error, UnicodeError):
        return "the file is damaged: it holds text that is not UTF-8"
    return " ".join(str(error).split())[:500]
