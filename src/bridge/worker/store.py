"""Durable sessions in one SQLite file, which any number of workers may share.

A session belongs to the worker that opened it last: opening raises its epoch, every write names
the epoch that it was opened with, and one of an older epoch writes nothing. Epochs come from one
counter of the file, so that one is never given twice, also not to a session of an old name.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from bridge import errors
from bridge.records import Changes, Quota, Records, Settings

APPLICATION_ID = 0x64737062  # "dspb", in the file's header
BUSY_TIMEOUT = 30.0  # seconds that another process may hold the file
# Errors that no smaller transaction would be spared.
OF_THE_FILE = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT),
    *(sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB),
}

# One entry for each version of the file, which is the number of those that were run on it.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE epochs (last INTEGER NOT NULL);
    INSERT INTO epochs VALUES (0);
    CREATE TABLE sessions (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        epoch INTEGER NOT NULL,
        created_at TEXT NOT NULL,
        ttl_s REAL NOT NULL,
        programs INTEGER,
        bytes INTEGER
    );
    CREATE TABLE records (
        session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        value BLOB NOT NULL,
        crc32 INTEGER NOT NULL,
        PRIMARY KEY (session, kind, name)
    );
    """,
)

T = TypeVar("T")
Read = Callable[[str, tuple[Any, ...]], list[tuple[Any, ...]]]


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
        self.transactions = 0
        _refuse_lost(path)
        try:
            # Its owner's alone: SQLite would make it by the umask.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = self._connect()
            self._prepare()
            self._reader = self._connect()
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
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
                "SELECT number, created_at, ttl_s, programs, bytes FROM sessions WHERE id = ?",
                (session_id,),
            ).fetchone()
            if row is None:
                return None
            number, created_at, ttl, programs, size = row
            records = _records(db, number)
            epoch = _next_epoch(db)
            db.execute("UPDATE sessions SET epoch = ? WHERE number = ?", (epoch, number))
            return Opened(epoch, Settings(created_at, ttl, Quota(programs, size)), records)

        return self._do(work)

    def create(self, session_id: str, settings: Settings, records: Changes) -> int:
        """Make a session; its epoch. Raises SessionLost where another worker has made one."""

        def work(db: sqlite3.Connection) -> int:
            if db.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone():
                raise errors.SessionLost.of(session_id)
            epoch, quota = _next_epoch(db), settings.quota
            (number,) = db.execute(
                "INSERT INTO sessions (id, epoch, created_at, ttl_s, programs, bytes)"
                " VALUES (?, ?, ?, ?, ?, ?) RETURNING number",
                (session_id, epoch, settings.created_at, settings.ttl, quota.programs, quota.bytes),
            ).fetchone()
            _write(db, number, records)
            return epoch

        return self._do(work)

    def write(self, session_id: str, epoch: int, changes: Changes) -> None:
        """All of `changes`, or nothing. Raises SessionLost where the epoch is not the last."""
        self._do(lambda db: _write(db, _owned(db, session_id, epoch), changes))

    def configure(self, session_id: str, epoch: int, settings: Settings) -> None:
        """Other settings. Raises SessionLost."""

        def work(db: sqlite3.Connection) -> None:
            number, quota = _owned(db, session_id, epoch), settings.quota
            db.execute(
                "UPDATE sessions SET ttl_s = ?, programs = ?, bytes = ? WHERE number = ?",
                (settings.ttl, quota.programs, quota.bytes, number),
            )

        self._do(work)

    def delete(self, session_id: str) -> int:
        """Drop the session, whoever has it; how many programs it had."""

        def work(db: sqlite3.Connection) -> int:
            (programs,) = db.execute(
                "SELECT count(*) FROM records JOIN sessions ON session = number"
                " WHERE id = ? AND kind = 'program'",
                (session_id,),
            ).fetchone()
            db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
            return int(programs)

        return self._do(work)

    def records(self, session_id: str) -> StoredRecords:
        """The records of a session as they are on disk, read without opening it."""
        return StoredRecords(session_id, self._read)

    def find(self, session_id: str) -> dict[str, Any] | None:
        """What can be said of a session without opening it: session_id, epoch, created_at, ttl_s,
        programs, bytes."""
        rows = self._list("WHERE id = ?", (session_id,))
        return rows[0] if rows else None

    def list_sessions(self, limit: int) -> tuple[list[dict[str, Any]], int]:
        """The same of at most `limit` sessions, by id; and how many there are."""
        ((total,),) = self._read("SELECT count(*) FROM sessions", ())
        return self._list("ORDER BY id LIMIT ?", (limit,)), total

    def _list(self, which: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
        """On a connection of its own: it may take long."""
        query = (
            "SELECT id, epoch, created_at, ttl_s, count(*) FILTER (WHERE kind = 'program'),"
            " coalesce(sum(length(CAST(name AS BLOB)) + length(value)), 0)"
            f" FROM (SELECT * FROM sessions {which}) LEFT JOIN records ON session = number"
            " GROUP BY number ORDER BY id"
        )
        names = ("session_id", "epoch", "created_at", "ttl_s", "programs", "bytes")
        try:
            with contextlib.closing(self._connect()) as db:
                return [dict(zip(names, row, strict=True)) for row in db.execute(query, values)]
        except sqlite3.Error as error:
            raise _failed(error) from error

    def close(self) -> None:
        """Nothing works afterwards. The last one to close leaves a single file behind."""
        with contextlib.suppress(errors.StoreFailed):  # closed already
            self._do(lambda db: None)
        with self._reading:
            self._reader.close()
        self._db.close()

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )

    def _read(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        """What is on disk; beside the writers, who are not waited for."""
        try:
            with self._reading:
                return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise _failed(error) from error

    def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `work` once it is on disk, in a transaction with what others want."""
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
            if len(batch) > 1 and code not in OF_THE_FILE:
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
        db.execute("BEGIN IMMEDIATE")
        try:
            for task in batch:
                task.run(db)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        self.transactions += 1

    def _prepare(self) -> None:
        db = self._db
        for pragma in ("foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"):
            db.execute(f"PRAGMA {pragma}")
        version = self._version()
        self._use_journal()
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")  # also finds out whether the file can be written
        try:
            version = self._version()  # another worker may have made it meanwhile
            for script in MIGRATIONS[version:]:
                for statement in script.split(";"):
                    db.execute(statement)
            if version < len(MIGRATIONS):
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _use_journal(self) -> None:
        """SQLite does not wait by itself for others that change to it at the same moment."""
        deadline = time.monotonic() + BUSY_TIMEOUT
        while True:
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def _version(self) -> int:
        """Raises StoreFailed for files that are not ours to change."""
        version, application, tables = self._db.execute(
            "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)"
            " FROM pragma_user_version, pragma_application_id"
        ).fetchone()
        if application != APPLICATION_ID and (application or version or tables):
            raise errors.StoreFailed(f"the store {self.path}: a database of something else")
        if version > len(MIGRATIONS):
            raise errors.StoreFailed(
                f"the store {self.path}: of version {version}, and this program knows"
                f" {len(MIGRATIONS)}; it was written by a later one"
            )
        return int(version)


class StoredRecords(Records):
    """The records of a session that may be another worker's. Cannot be changed."""

    __slots__ = ("_read", "_session_id")

    def __init__(self, session_id: str, read: Read) -> None:
        super().__init__(Quota())
        self._session_id = session_id
        self._read = read

    def of(self, kind: str) -> Mapping[str, bytes]:
        """The values of that kind, each read when it is asked for. Raises StoreFailed."""
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
            "SELECT value, crc32 FROM records JOIN sessions ON session = number"
            " WHERE id = ? AND kind = ? AND name = ?",
            (*self._where, name),
        )
        if not rows:
            raise KeyError(name)
        ((value, crc32),) = rows
        return _checked(self._where[1], name, value, crc32)

    def __iter__(self) -> Iterator[str]:
        rows = self._read(
            "SELECT name FROM records JOIN sessions ON session = number"
            " WHERE id = ? AND kind = ? ORDER BY records.rowid",
            self._where,
        )
        return iter([name for (name,) in rows])

    def __len__(self) -> int:
        return len(list(iter(self)))


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
        """Until it is done, or its turn to lead."""
        self._turn.acquire()

    def wake(self) -> None:
        self._turn.release()

    def run(self, db: sqlite3.Connection) -> None:
        """An error of the wire's table is an answer: it is raised before anything is written."""
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


def _refuse_lost(path: Path) -> None:
    """SQLite takes a missing or an empty file for a new one, and throws its journal away."""
    journal = path.with_name(path.name + "-wal")
    if not _size(path) and _size(journal):
        raise errors.StoreFailed(
            f"the store {path}: the file is missing or empty, but its journal {journal.name} is"
            " there; bring it back, or move the journal away"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _next_epoch(db: sqlite3.Connection) -> int:
    (epoch,) = db.execute("UPDATE epochs SET last = last + 1 RETURNING last").fetchone()
    return int(epoch)


def _owned(db: sqlite3.Connection, session_id: str, epoch: int) -> int:
    row = db.execute(
        "SELECT number FROM sessions WHERE id = ? AND epoch = ?", (session_id, epoch)
    ).fetchone()
    if row is None:
        raise errors.SessionLost.of(session_id)
    return int(row[0])


def _records(db: sqlite3.Connection, number: int) -> Changes:
    records: Changes = {}
    for kind, name, value, crc32 in db.execute(
        "SELECT kind, name, value, crc32 FROM records WHERE session = ? ORDER BY rowid", (number,)
    ):
        records[kind, name] = _checked(kind, name, value, crc32)
    return records


def _checked(kind: str, name: str, value: bytes, crc32: int) -> bytes:
    if zlib.crc32(value) != crc32:
        raise errors.StoreFailed(f"the store is damaged: {kind} {name!r} is not what it was")
    return value


def _write(db: sqlite3.Connection, number: int, changes: Changes) -> None:
    for (kind, name), value in changes.items():
        if value is None:
            db.execute(
                "DELETE FROM records WHERE session = ? AND kind = ? AND name = ?",
                (number, kind, name),
            )
        else:
            db.execute(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (session, kind, name)"
                " DO UPDATE SET value = excluded.value, crc32 = excluded.crc32",
                (number, kind, name, value, zlib.crc32(value)),
            )


def _failed(error: Exception) -> errors.StoreFailed:
    return errors.StoreFailed(f"the store failed: {error}")
