"""Threads for code that is not the client's own: tools, event listeners, callbacks."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_SECONDS = 10.0  # that a thread waits for its next job before it ends

Job = Callable[[], object]


class Threads:
    """Run each job at once, on an idle thread or a new one, so that no job waits for another.

    The threads are daemons: a job that never returns does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._idle = 0
        self._lock = threading.RLock()  # a destructor may run a job in the middle of `run`

    def run(self, job: Job) -> None:
        """Run `job` on another thread. Raises RuntimeError if no thread can be started."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._jobs.put(job)
                return
        threading.Thread(target=self._work, args=(job,), name=self._name, daemon=True).start()

    def _work(self, first: Job) -> None:
        job: Job | None = first
        del first  # what it holds on to is not needed longer than the job runs
        while job is not None:
            try:
                job()
            except BaseException:
                logging.getLogger("bridge").exception("a job of the client failed: %r", job)
            job = None
            job = self._next()

    def _next(self) -> Job | None:
        with self._lock:
            self._idle += 1
        with contextlib.suppress(Empty):
            return self._jobs.get(timeout=IDLE_SECONDS)
        with self._lock:
            with contextlib.suppress(Empty):  # handed over in the last moment
                return self._jobs.get_nowait()
            self._idle -= 1
        return None
