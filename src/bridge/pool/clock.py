"""A thread that runs short jobs at their time."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic

from bridge.host.condition import Condition

Job = Callable[[], object]


class Clock:
    """Runs jobs in the order of their time, in one thread. A job must not wait for anything."""

    def __init__(self, name: str) -> None:
        self._jobs: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._changed = Condition()
        self._is_stopped = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def later(self, delay: float, job: Job) -> bool:
        """Run `job` after `delay` seconds, or when the clock is stopped. Return False if it has been stopped."""
        with self._changed:
            if self._is_stopped:
                return False
            heapq.heappush(self._jobs, (monotonic() + delay, next(self._numbers), job))
            self._changed.notify()
            return True

    def stop(self) -> None:
        """Run the jobs that wait, and end the thread."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job()
            except Exception:
                logging.getLogger("bridge.pool").exception("a job of the pool failed: %r", job)

    def _next(self) -> Job | None:
        with self._changed:
            while self._jobs or not self._is_stopped:
                now = monotonic()
                if self._jobs and (self._is_stopped or self._jobs[0][0] <= now):
                    return heapq.heappop(self._jobs)[2]
                self._changed.wait(self._jobs[0][0] - now if self._jobs else None)
        return None
