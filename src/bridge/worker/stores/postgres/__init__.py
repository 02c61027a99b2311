"""Durable sessions in a PostgreSQL database, which any number of workers on any number of machines may share.

The tables are in a schema of their own, so that the database may be that of an application.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from bridge import errors
from bridge.records import Changes, Quota, SessionSettings
from bridge.worker.stores.group_commit import GroupCommit
from bridge.worker.stores.postgres import changes
from bridge.worker.stores.postgres.address import conninfo
from bridge.worker.stores.postgres.changes import Change, Statement, decoded, encoded
from bridge.worker.stores.postgres.connection import affects_all, connect, failure
from bridge.worker.stores.postgres.listener import Listener
from bridge.worker.stores.postgres.reader import Reader
from bridge.worker.stores.postgres.writer import Writer
from bridge.worker.stores.protocol import OnTaken, StoredSession, TakenSession

MOST_BYTES = 64 * 2**20  # of the records of several changes in one statement, which PostgreSQL limits to 1 GiB

Make = Callable[[Sequence[Change]], Statement]


def open_store(location: str) -> PostgresStore:
    """Open the store at `location`, a URL of libpq after its scheme. Raises StoreFailed."""
    return PostgresStore(conninfo(f"postgresql:{location}"))


class PostgresStore:
    """Stores sessions in the database that libpq connects to with `conninfo`. See `Store` for the methods.

    Raises StoreFailed for a server that cannot be reached, that is too old or read-only, for a schema that is newer
    than this program or another application's, and for a role that lacks rights.

    commits: the group commit of its writes.
    """

    def __init__(self, conninfo: str) -> None:
        self._connect = partial(connect, conninfo)
        self._reader = Reader(self._connect)
        self._writer = Writer(self._connect, self._reader.renew)
        self._listener: Listener | None = None
        self._checks: GroupCommit[list[Change]] = GroupCommit(self._check, affects_all, failure)
        self.commits = self._group(changes.write)
        self._creations, self._takeovers, self._ends = map(
            self._group, (changes.creation, changes.takeover, changes.end)
        )

    def create(self, session_id: str, settings: SessionSettings, records: Changes) -> int:
        epoch = self._run(self._creations, Change(encoded(session_id), records=records, settings=settings))
        if epoch is None:
            raise errors.SessionLost.of(session_id)
        return epoch

    def take(self, session_id: str) -> TakenSession | None:
        # Most sessions are not durable: the search for one must not wait for writers.
        if not self._reader.read("SELECT 1 FROM sessions WHERE id = %b", (encoded(session_id),)):
            return None
        epoch = self._run(self._takeovers, Change(encoded(session_id)))
        if epoch is None:
            return None
        rows = self._reader.read(
            "SELECT created_at, ttl, quota_records, quota_bytes, kind, name, value"
            " FROM sessions LEFT JOIN records ON session = number"
            " WHERE id = %b AND epoch = %s AND owner = %s ORDER BY position",
            (encoded(session_id), epoch, self._writer.id),
        )
        if not rows:
            raise errors.SessionLost.of(session_id)  # taken again meanwhile
        created_at, ttl, counted_records, size = rows[0][:4]
        records: Changes = {(kind, decoded(name)): value for *_, kind, name, value in rows if kind is not None}
        return TakenSession(epoch, SessionSettings(created_at, ttl, Quota(counted_records, size)), records)

    def is_owner(self, session_id: str, epoch: int) -> bool:
        return self._run(self._checks, Change(encoded(session_id), epoch)) is not None

    def write(self, session_id: str, epoch: int, changes: Changes, settings: SessionSettings | None = None) -> None:
        if self._run(self.commits, Change(encoded(session_id), epoch, changes, settings)) is None:
            raise errors.SessionLost.of(session_id)

    def drop(self, session_id: str, counted: str | None) -> int:
        return self._run(self._ends, Change(encoded(session_id), counted=counted)) or 0

    def find(self, session_id: str, counted: str | None) -> StoredSession | None:
        rows = self._reader.read(_described("WHERE id = %b"), (counted, encoded(session_id)))
        return _stored(rows[0]) if rows else None

    def list_sessions(self, limit: int, counted: str | None) -> tuple[list[StoredSession], int]:
        ((total,),) = self._reader.read("SELECT count(*) FROM sessions", ())
        rows = self._reader.read_much(_described("ORDER BY id LIMIT %s"), (counted, limit))
        return [_stored(row) for row in rows], total

    def names(self, session_id: str, kind: str) -> list[str]:
        rows = self._reader.read(
            "SELECT name FROM records JOIN sessions ON session = number WHERE id = %b AND kind = %s ORDER BY position",
            (encoded(session_id), kind),
        )
        return [decoded(name) for (name,) in rows]

    def value(self, session_id: str, kind: str, name: str) -> bytes | None:
        rows = self._reader.read(
            "SELECT value FROM records JOIN sessions ON session = number"
            " WHERE id = %b AND kind = %s AND sha256(name) = sha256(%b)",
            (encoded(session_id), kind, encoded(name)),
        )
        return rows[0][0] if rows else None

    def watch(self, on_taken: OnTaken) -> None:
        self._listener = Listener(self._connect, on_taken)

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _group(self, statement: Make) -> GroupCommit[list[Change]]:
        return GroupCommit(partial(self._transact, statement), affects_all, failure)

    def _transact(self, statement: Make, apply: Callable[[list[Change]], None]) -> None:
        batch: list[Change] = []
        apply(batch)
        if len(batch) > 1 and (
            len({change.session_id for change in batch}) < len(batch)
            or sum(change.size for change in batch) > MOST_BYTES
        ):
            raise _OneByOne
        self._writer.commit(statement(batch), batch)

    def _check(self, apply: Callable[[list[Change]], None]) -> None:
        """Set the result of each session that this store owns, by one query: each call of a session asks that."""
        batch: list[Change] = []
        apply(batch)
        for (turn,) in self._reader.read(*changes.ownership(batch, self._writer.id)):
            batch[turn - 1].result = 1

    def _run(self, group: GroupCommit[list[Change]], change: Change) -> int | None:
        group.run(lambda batch: batch.append(change))
        return change.result


class _OneByOne(Exception):
    """Raised for changes that cannot be made by one statement: of the same session, or too large together."""


def _described(which: str) -> str:
    return (
        "SELECT id, epoch, created_at, ttl, count(*) FILTER (WHERE kind = %s),"
        " coalesce(sum(octet_length(name) + octet_length(value)), 0)::bigint"
        f" FROM (SELECT * FROM sessions {which}) AS described LEFT JOIN records ON session = number"
        " GROUP BY id, epoch, created_at, ttl ORDER BY id"
    )


def _stored(row: tuple[Any, ...]) -> StoredSession:
    session_id, *rest = row
    return StoredSession(decoded(session_id), *rest)
