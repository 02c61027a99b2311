"""Refusing calls that wait too long in the queue: CoDel, by the rules of DBConnection.

A queue that is long for a moment is left alone. One in which every call of an interval has waited longer than the
target does not get shorter by itself; then calls that have waited twice as long are refused until it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from bridge import errors
from bridge._histogram import now_ns
from bridge.worker.timers import Timer, Timers

INTERVAL_NS = 1_000_000_000

Call = TypeVar("Call")


class QueueDelay:
    """Tells which calls are late: CoDel alone, without a clock. All times are in nanoseconds."""

    def __init__(self, target_ns: int, interval_ns: int) -> None:
        self._target_ns = target_ns
        self._interval_ns = interval_ns
        self._next_ns = 0  # when the next interval begins
        self._least_ns = 0  # the shortest wait of the current interval
        self._is_slow = False  # whether each call of the previous interval waited longer than the target

    def note(self, waited_ns: int, now: int) -> None:
        """Note how long a call has waited that starts now."""
        if now >= self._next_ns:
            has_gap = now >= self._next_ns + self._interval_ns  # in which no call waited
            self._is_slow = self._least_ns > self._target_ns and not has_gap
            self._next_ns = now + self._interval_ns
            self._least_ns = waited_ns
        elif waited_ns < self._least_ns:
            self._least_ns = waited_ns

    def note_oldest(self, waited_ns: int, now: int) -> None:
        """Note how long the oldest call has waited that still waits. It says nothing before the target is reached."""
        if waited_ns > self._target_ns:
            self.note(waited_ns, now)

    def is_late(self, waited_ns: int) -> bool:
        """Return whether a call that has waited so long should be refused."""
        return self._is_slow and waited_ns > 2 * self._target_ns


class Shedding(Generic[Call]):
    """Refuses calls that are late: when a thread comes for them and, in case none does, once per interval.

    target_ms: a wait that is acceptable. is_full(): whether all threads are busy; if not, a call waits for its session
    only, which does not count. refuse(call, error): answers a call that has not started; returns whether it had no
    reply yet.
    """

    def __init__(
        self,
        target_ms: float,
        is_full: Callable[[], bool],
        timers: Timers,
        refuse: Callable[[Call, errors.Overloaded], bool],
    ) -> None:
        self.shed = 0  # calls that were refused since the start
        self._target_ms = target_ms
        self._delay = QueueDelay(int(target_ms * 1e6), INTERVAL_NS)
        self._is_full = is_full
        self._timers = timers
        self._refuse = refuse
        # When each call arrived, the oldest first. Whoever removes a call from here decides whether it starts.
        self._waiting: dict[Call, int] = {}
        self._looks = False
        self._lock = threading.Lock()

    def enter(self, call: Call) -> None:
        """Note that `call` begins to wait."""
        with self._lock:
            now = self._waiting[call] = now_ns()
            if self._looks:
                return
            self._looks = True
        self._timers.add(Timer(now + INTERVAL_NS, self._look))

    def leave(self, call: Call) -> None:
        """Note that `call` has its reply."""
        with self._lock:
            self._waiting.pop(call, None)

    def admits(self, call: Call) -> bool:
        """Return whether `call`, for which there is a thread now, may start. If not, it has its reply."""
        with self._lock:
            since = self._waiting.pop(call, None)
            if since is None:
                return False
            now = now_ns()
            waited = now - since if self._is_full() else 0
            self._delay.note(waited, now)
            is_late = self._delay.is_late(waited)
        if is_late:
            self._shed(call, waited)
        return not is_late

    def _look(self) -> None:
        """Refuse the calls that are late, and look again after an interval if others wait."""
        now = now_ns()
        late: dict[Call, int] = {}
        with self._lock:
            if self._waiting and self._is_full():
                oldest = next(iter(self._waiting.values()))
                self._delay.note_oldest(now - oldest, now)
                late = {call: now - since for call, since in self._waiting.items() if self._delay.is_late(now - since)}
            for call in late:
                del self._waiting[call]
            self._looks = looks = bool(self._waiting)
        for call, waited in late.items():
            self._shed(call, waited)
        if looks:
            self._timers.add(Timer(now + INTERVAL_NS, self._look))

    def _shed(self, call: Call, waited_ns: int) -> None:
        waited_ms = waited_ns // 1_000_000
        text = f"the call waited {waited_ms} ms (--queue-target {self._target_ms:g})"
        error = errors.Overloaded.refused(text, waited_ms=waited_ms)
        if self._refuse(call, error):
            with self._lock:
                self.shed += 1
