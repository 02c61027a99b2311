"""How many calls may be repeated: so many that a failing service does not get a multiple of its usual load."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable

WINDOW = 10  # seconds
CALLS_PER_RETRY = 10
RETRIES_PER_SECOND = 3


class RetryBudget:
    """Limits the retries of the last 10 seconds to 10 % of the calls in that time, plus 3 a second.

    Any thread may use it. clock: returns seconds, which never decrease.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()  # reentrant, because signal handlers may call the pool
        self._end = -math.inf  # of the current second
        self._current = _Second(0)
        self._recent: deque[_Second] = deque()

    def record_call(self) -> None:
        """Count a call, which is not a retry.

        Takes no lock: a count that is lost between two threads makes the budget smaller, never larger.
        """
        if self._clock() >= self._end:
            with self._lock:
                self._begin_second()
        self._current.calls += 1

    def take(self) -> bool:
        """Return whether a call may be repeated now, and count the retry if so."""
        with self._lock:
            self._begin_second()
            calls = sum(second.calls for second in self._recent)
            retries = sum(second.retries for second in self._recent)
            if CALLS_PER_RETRY * (retries + 1 - RETRIES_PER_SECOND * WINDOW) > calls:
                return False
            self._current.retries += 1
            return True

    def _begin_second(self) -> None:
        now = self._clock()
        if now >= self._end:
            self._current = _Second(math.floor(now))
            self._end = self._current.number + 1
            self._recent.append(self._current)
            while self._recent[0].number <= self._current.number - WINDOW:
                self._recent.popleft()


class _Second:
    """What was counted in a second of the clock."""

    __slots__ = ("calls", "number", "retries")

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls = 0
        self.retries = 0
