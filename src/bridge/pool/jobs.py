"""Where the code of open calls runs."""

from __future__ import annotations

import logging
from collections import deque
from functools import partial
from threading import RLock

from bridge.host.threads import Job, Threads
from bridge.pool.clock import Clock


class Jobs:
    """Where the code of open calls runs: one after the other where it is short, on a thread each where it may wait."""

    def __init__(self, threads: Threads, clock: Clock) -> None:
        self._threads = threads
        self._clock = clock
        self._waiting: deque[Job] = deque()
        self._is_running = False
        self._lock = RLock()

    def run(self, job: Job) -> None:
        """Run a job that may wait on a thread of its own. Raises RuntimeError if there is none."""
        self._threads.run(job)

    def run_later(self, delay: float, job: Job) -> None:
        """Run a job that may wait after `delay` seconds."""
        if not delay or not self._clock.later(delay, partial(self._threads.run, job)):
            self._threads.run(job)

    def run_short(self, job: Job) -> None:
        """Run a job that does not wait after the ones before it."""
        with self._lock:
            self._waiting.append(job)
            if self._is_running:
                return
            self._is_running = True
        self._threads.run(self._run_waiting)

    def _run_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_running = False
                    return
                job = self._waiting.popleft()
            try:
                job()
            except Exception:
                logging.getLogger("bridge.pool").exception("a job of the pool failed: %r", job)
