"""How many calls may be repeated: so many that a failing service does not get a multiple of its usual load."""

from __future__ import annotations

import threading
import time
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
        self._lock = threading.Lock()
        # One entry for each second of the window. A second belongs to the entry at its remainder.
        self._seconds = [0] * WINDOW
        self._calls = [0] * WINDOW
        self._retries = [0] * WINDOW

    def record_call(self) -> None:
        """Count a call, which is not a retry.

        Takes no lock: a count that is lost between two threads makes the budget smaller, never larger.
        """
        second = int(self._clock() // 1)
        entry = second % WINDOW
        if self._seconds[entry] != second:
            with self._lock:
                self._begin(second)
        self._calls[entry] += 1

    def take(self) -> bool:
        """Return whether a call may be repeated now, and count the retry if so."""
        second = int(self._clock() // 1)
        with self._lock:
            self._begin(second)
            recent = [entry for entry, of in enumerate(self._seconds) if of > second - WINDOW]
            retries = sum(self._retries[entry] for entry in recent)
            calls = sum(self._calls[entry] for entry in recent)
            if CALLS_PER_RETRY * (retries + 1 - RETRIES_PER_SECOND * WINDOW) > calls:
                return False
            self._retries[second % WINDOW] += 1
            return True

    def _begin(self, second: int) -> None:
        entry = second % WINDOW
        if self._seconds[entry] != second:
            self._calls[entry] = self._retries[entry] = 0
            self._seconds[entry] = second
