"""The sessions of a pool, and the slot that has each of them."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from bridge.pool.slots import Slot


class Home:
    """Where a session is. used: when it was last called, due: when to ask whether it still exists, both in seconds of
    time.monotonic()."""

    __slots__ = ("due", "slot", "used")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.used = monotonic()
        self.due = 0.0


class Expiry(NamedTuple):
    """What a worker says of an idle session, in seconds."""

    idle: float
    ttl: float


FIRST_CHECK = 5.0  # seconds without a call, after which the worker is asked whether a session still exists
LONGEST_PAUSE = 300.0  # seconds until it is asked again: it may have evicted the session
LOST_FOR = 3600.0  # seconds for which it is remembered that a session was lost


class Sessions:
    """The homes of sessions, by their ids. A session whose home is gone is lost, and one caller gets that error.

    ended: called with the id of each session that has left the table and does not go on elsewhere.
    """

    def __init__(self, ended: Callable[[str], object]) -> None:
        self.homes: dict[str, Home] = {}
        self._ended = ended

    def __len__(self) -> int:
        return len(self.homes)

    def end(self, session_id: str) -> None:
        """Forget a session."""
        self.homes.pop(session_id, None)
        self._ended(session_id)

    def remove(self, session_id: str, home: Home, *, goes_on: bool = False) -> bool:
        """Forget where a session is unless it has got another home, and return whether that was forgotten.

        goes_on: whether the session can be loaded by another worker.
        """
        if self.homes.get(session_id) is not home:
            return False
        self.homes.pop(session_id, None)
        if not goes_on:
            self._ended(session_id)
        return True

    def has(self, session_id: str, slot: Slot) -> bool:
        """Return whether a slot is the home of a session."""
        home = self.homes.get(session_id)
        return home is not None and home.slot is slot

    def of(self, slot: Slot) -> list[str]:
        """Return the ids of the sessions that a slot has."""
        return [session_id for session_id, home in list(self.homes.items()) if home.slot is slot]

    def counts(self) -> dict[Slot, int]:
        """Return how many sessions each slot has."""
        counts: dict[Slot, int] = {}
        for home in list(self.homes.values()):
            counts[home.slot] = counts.get(home.slot, 0) + 1
        return counts

    def due(self, now: float) -> list[tuple[str, Home]]:
        """Return the idle sessions that may have expired. Forget those that were lost long ago."""
        due = []
        for session_id, home in list(self.homes.items()):
            if home.slot.state == "gone":
                if now - home.used > LOST_FOR:
                    self.remove(session_id, home)
            elif now >= home.due and now - home.used >= FIRST_CHECK:
                due.append((session_id, home))
        return due

    def checked(
        self, session_id: str, home: Home, asked: float, expiry: Expiry | None, *, goes_on: bool = False
    ) -> None:
        """Note what a worker, asked at a moment, has said of a session: None if it does not have the session, which
        may go on in another one."""
        if expiry is not None:
            home.due = asked + min(max(expiry.ttl - expiry.idle, 1.0), LONGEST_PAUSE)
        elif home.used < asked:
            self.remove(session_id, home, goes_on=goes_on)
