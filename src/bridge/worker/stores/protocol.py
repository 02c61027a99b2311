"""The interface of stores of durable sessions, whichever database they use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from bridge.records import Changes, SessionSettings

OnTaken = Callable[[str, int], None]


class TakenSession(msgspec.Struct, frozen=True):
    """Represents a session with its records, owned under `epoch` by the worker that took it."""

    epoch: int
    settings: SessionSettings
    records: Changes


class StoredSession(msgspec.Struct, frozen=True):
    """Represents a session as a store describes it.

    ttl: seconds. counted_records: how many records of the counted kind it has. bytes: the length of all names and
    values of its records.
    """

    session_id: str
    epoch: int
    created_at: str
    ttl: float
    counted_records: int
    bytes: int


class Store(Protocol):
    """Stores durable sessions. Any number of workers may share what one store writes to.

    A session is owned by the worker that created or took it last, under an epoch. No epoch is ever used twice, also
    not for a later session of the same id. A write names the epoch; if another worker has taken the session since, the
    write changes nothing and raises SessionLost.

    Methods may be called from any thread. They return once their changes would survive a crash of the machine. They
    raise StoreFailed for a store that is damaged, full or unreachable, and then have changed nothing. OutcomeUnknown,
    one of its classes, is for a store that became unreachable during the change, which it may have made or not.

    counted: the kind of records to count; None: count none.
    """

    def create(self, session_id: str, settings: SessionSettings, records: Changes) -> int:
        """Create a session and return its epoch. Raises SessionLost if the store has one of that id."""

    def take(self, session_id: str) -> TakenSession | None:
        """Take the session over from the worker that owns it. Return None if there is no such session."""

    def is_owner(self, session_id: str, epoch: int) -> bool:
        """Return whether no other worker has taken the session since it got `epoch`."""

    def write(self, session_id: str, epoch: int, changes: Changes, settings: SessionSettings | None = None) -> None:
        """Write all of `changes` and, unless None, `settings`. Raises SessionLost for an old epoch."""

    def drop(self, session_id: str, counted: str | None) -> int:
        """Delete the session, whichever worker owns it. Return how many records of the kind `counted` it had."""

    def find(self, session_id: str, counted: str | None) -> StoredSession | None:
        """Describe a session without taking it. Return None if there is no such session."""

    def list_sessions(self, limit: int, counted: str | None) -> tuple[list[StoredSession], int]:
        """Describe at most `limit` sessions, ordered by id. Return them and the number of all sessions."""

    def names(self, session_id: str, kind: str) -> Sequence[str]:
        """Return the names of a session's records of that kind, oldest first, without taking the session."""

    def value(self, session_id: str, kind: str, name: str) -> bytes | None:
        """Return the value of one record without taking its session; None if there is no such record."""

    def watch(self, on_taken: OnTaken) -> None:
        """Call on_taken(session_id, epoch) on any thread when another worker takes or deletes a session under that
        epoch. This is only a hint: the store may do so late or never."""

    def close(self) -> None:
        """Finish the writes that have begun, then release everything. Later calls raise StoreFailed."""
