"""Where the code of open calls runs."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import RLock
from typing import Any

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

    def result_of(self, job: Callable[[], Any], timeout: float | None) -> Any:
        """Run a job that may wait on a thread of its own, and return its result, or raise its error.

        If the caller is interrupted, the job goes on. Raises queue.Empty after `timeout` seconds: if the caller is a
        signal handler, it may have interrupted code that holds a lock.
        """
        # A queue and no future, because that may stay locked if the wait for it is interrupted.
        outcome: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self._threads.run(lambda: outcome.put(_outcome_of(job)))
        result, error = outcome.get(timeout=timeout)
        if error is not None:
            raise error
        return result

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


def _outcome_of(job: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    try:
        return job(), None
    except BaseException as error:
        return None, error
