"""Which sessions may have been idle for too long."""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Iterator

from bridge.worker.session import Session


class Expiry:
    """Finds sessions whose time may be over, at a cost that does not grow with their number.

    Each stands in the slot of a second. A call in the session does not move it: when its slot is
    due, it is looked at, and goes into a later one if it was used meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[int, set[str]] = {}
        self._seconds: list[int] = []
        self._due: list[str] = []

    def add(self, session: Session, since: float) -> None:
        """Look at it when its time to live is over, counted from `since`."""
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
        """Look at it no more."""
        with self._lock:
            self._leave_slot(session)

    def due(self, now: float, most: int) -> Iterator[str]:
        """Up to `most` ids of sessions to be looked at by now."""
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
