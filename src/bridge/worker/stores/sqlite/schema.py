"""The schema of a store's file: its tables, the migrations between versions, and the checksums of rows."""

from __future__ import annotations

import sqlite3
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec

from bridge import errors

APPLICATION_ID = 0x64737062  # "dspb", in the file's header
BUSY_TIMEOUT = 30.0  # seconds to wait for another process that holds the file's lock

# The version of a file is the number of migrations that have run on it. `sessions.programs` and `sessions.bytes` are
# the quota; the first one limits the records of the kind that the adapter counts, which was "program" when the column
# was named.
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
    # A damaged record must stay damaged. The column is renamed so that older workers, which still write the old
    # checksum, fail.
    """
    ALTER TABLE records RENAME COLUMN crc32 TO checksum;
    UPDATE records SET checksum = CASE
        WHEN checksum = crc32_of(value) THEN record_checksum(
            (SELECT id FROM sessions WHERE number = session), kind, name, value)
        ELSE -1 END;
    ALTER TABLE sessions ADD COLUMN checksum INTEGER NOT NULL DEFAULT -1;
    UPDATE sessions SET checksum =
        session_checksum(id, epoch, created_at, ttl_s, programs, bytes);
    ALTER TABLE sessions ADD COLUMN records_checksum INTEGER NOT NULL DEFAULT 0;
    UPDATE sessions SET records_checksum =
        (SELECT checksum_of_all(checksum) FROM records WHERE session = number);
    """,
)


def record_checksum(session_id: str, kind: str, name: str, value: bytes) -> int:
    """Return the checksum of a record: of its value and its key, so that swapped records are detected too."""
    return zlib.crc32(value, zlib.crc32(msgspec.msgpack.encode((session_id, kind, name))))


class ChecksumOfAll:
    """Computes the checksum of a set of records: the exclusive or of their checksums, in any order.

    An aggregate function for SQLite. A record can be added to the set or removed without reading the others.
    """

    def __init__(self) -> None:
        self._total = 0

    def step(self, checksum: int) -> None:
        self._total ^= checksum

    def finalize(self) -> int:
        return self._total


def session_checksum(*columns: Any) -> int:
    """Return the checksum of a session's columns id, epoch, created_at, ttl_s, programs, bytes."""
    return zlib.crc32(msgspec.msgpack.encode(columns))


def prepare(db: sqlite3.Connection, path: Path) -> None:
    """Configure the connection `db` and run the missing migrations in one transaction.

    Raises sqlite3.Error if the file cannot be written, StoreFailed if it belongs to another application or to a newer
    version.
    """
    for pragma in ("foreign_keys = ON", "trusted_schema = OFF", "cell_size_check = ON"):
        db.execute(f"PRAGMA {pragma}")
    db.create_function("crc32_of", 1, zlib.crc32, deterministic=True)
    db.create_function("record_checksum", 4, record_checksum, deterministic=True)
    db.create_function("session_checksum", 6, session_checksum, deterministic=True)
    db.create_aggregate("checksum_of_all", 1, ChecksumOfAll)
    _version(db, path)
    _use_journal(db)
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")  # fails for a file that cannot be written
    try:
        version = _version(db, path)  # again: another worker may have migrated the file since
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


def _use_journal(db: sqlite3.Connection) -> None:
    """Turn on the write-ahead log. SQLite's busy timeout does not cover that, so wait here."""
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _version(db: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of the file. Raises StoreFailed for one of another application or a later version."""
    version, application, tables = db.execute(
        "SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema)"
        " FROM pragma_user_version, pragma_application_id"
    ).fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise errors.StoreFailed(f"the store {path} is another application's SQLite database")
    if version > len(MIGRATIONS):
        raise errors.StoreFailed(
            f"the store {path} has schema version {version}, newer than this program's {len(MIGRATIONS)}"
        )
    return int(version)
