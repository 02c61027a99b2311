"""The clock: one thread that calls functions at given times."""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable

from bridge._histogram import now_ns
from bridge.worker import limits

FEW = 64  # timers, so few that cancelled ones among them do not matter


class Timer:
    """Represents a function to call once at the time `at_ns` (monotonic nanoseconds), unless it is cancelled."""

    __slots__ = ("_run", "at_ns")

    def __init__(self, at_ns: int, run: Callable[[], object]) -> None:
        self.at_ns = at_ns
        self._run: Callable[[], object] | None = run

    @property
    def is_cancelled(self) -> bool:
        """Return whether the function will not be called anymore."""
        return self._run is None

    def cancel(self) -> None:
        """Cancel the call of the function, and release what the function refers to."""
        self._run = None

    def fire(self) -> None:
        """Call the function, unless it has been called or the timer is cancelled."""
        run, self._run = self._run, None
        if run is not None:
            run()


class Timers:
    """Fires timers on a separate thread, which is started with the first timer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Timer]] = []  # a heap; the numbers keep it from comparing timers
        self._most = FEW  # when there are more, the cancelled ones are removed
        self._numbers = itertools.count()
        self._wakes_at: float = 0  # when the clock looks at the timers again, in ns; 0: it does not wait
        self._clock: threading.Thread | None = None
        self._stopped = False

    def add(self, timer: Timer) -> None:
        """Fire `timer` at its time, or immediately if that has passed."""
        with self._changed:
            entry = (timer.at_ns, next(self._numbers), timer)
            heapq.heappush(self._waiting, entry)
            if len(self._waiting) > self._most:
                self._remove_cancelled()
            if self._clock is None:
                self._clock = threading.Thread(target=self._run, name="bridge-clock", daemon=True)
                with limits.lifted():
                    self._clock.start()
            elif timer.at_ns < self._wakes_at:
                self._changed.notify()

    def stop(self, timeout: float) -> bool:
        """End the clock. Return whether it has ended within `timeout` seconds."""
        with self._changed:
            self._stopped = True
            self._changed.notify()
            clock = self._clock
        if clock is None:
            return True
        clock.join(timeout)
        return not clock.is_alive()

    def _run(self) -> None:
        while (timer := self._next()) is not None:
            timer.fire()

    def _next(self) -> Timer | None:
        """Wait for the next timer and return it, or None after `stop`."""
        with self._changed:
            while not self._stopped:
                wait = self._until_next()
                if wait is not None and wait <= 0:
                    return heapq.heappop(self._waiting)[2]
                self._wakes_at = self._waiting[0][0] if self._waiting else math.inf
                self._changed.wait(wait)
                self._wakes_at = 0
        return None

    def _remove_cancelled(self) -> None:
        """Remove the cancelled timers, of which a worker makes one for each call that ends before its deadline."""
        self._waiting = [entry for entry in self._waiting if not entry[2].is_cancelled]
        heapq.heapify(self._waiting)
        self._most = max(FEW, 2 * len(self._waiting))

    def _until_next(self) -> float | None:
        """Return the seconds until the next timer; None without one."""
        return (self._waiting[0][0] - now_ns()) / 1e9 if self._waiting else None
