"""The search for sessions that may have been idle for too long."""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Iterator

from bridge.worker.session import Session


class Expiry:
    """Finds sessions whose time to live may be over, at a cost that does not grow with their number.

    Each session is in the slot of a second. A call does not move its session: when the slot is due, the user of this
    class checks the session and adds it to a later slot if it has been used since.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[int, set[str]] = {}
        self._seconds: list[int] = []
        self._due: list[str] = []

    def add(self, session: Session, since: float) -> None:
        """Report the session once its time to live, counted from `since`, is over."""
        second = math.ceil(since + session.ttl)
        with self._lock:
            self._leave_slot(session)
            session.slot = second
            ids = self._slots.get(second)
            if ids is None:
                ids = self._slots[second] = set()
                heapq.heappush(self._seconds, second)
            ids.add(session.id)

    def remove(self, session: Session) -> None:
        """Stop reporting the session."""
        with self._lock:
            self._leave_slot(session)

    def due(self, now: float, most: int) -> Iterator[str]:
        """Yield the ids of at most `most` sessions to check at the time `now`."""
        if not self._due and not (self._seconds and self._seconds[0] <= now):
            return
        with self._lock:
            while len(self._due) < most and self._seconds and self._seconds[0] <= now:
                self._due += self._slots.pop(heapq.heappop(self._seconds))
        for _ in range(min(most, len(self._due))):
            yield self._due.pop()

    def _leave_slot(self, session: Session) -> None:
        self._slots.get(session.slot, _EMPTY).discard(session.id)


_EMPTY: set[str] = set()
