"""Threads that run the application's code: tools, event listeners, callbacks."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

IDLE_SECONDS = 10.0  # how long a thread waits for its next job before it ends

Job = Callable[[], object]


class Threads:
    """Threads that run each job at once, idle ones first, so that no job waits for another.

    The threads are daemons: a job that never returns does not keep the process alive.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        # One entry for each idle thread, removed by the code that gives it a job. A lock could deadlock: a
        # destructor may call `run` while its thread is inside `run`.
        self._idle: deque[None] = deque()

    def run(self, job: Job) -> None:
        """Run `job` on another thread. Raises RuntimeError if no thread can be started."""
        if self._takes_idle_thread():
            self._jobs.put(job)
        else:
            # A list, because a Thread keeps its arguments until it ends; what a job refers to must not outlive it.
            thread = threading.Thread(target=self._work, args=([job],), name=self._name, daemon=True)
            thread.start()

    def _work(self, first: list[Job]) -> None:
        job: Job | None = first.pop()
        while job is not None:
            try:
                job()
            except BaseException:
                logging.getLogger("bridge").exception("a job of the client failed: %r", job)
            job = None
            job = self._next()

    def _next(self) -> Job | None:
        self._idle.append(None)
        try:
            return self._jobs.get(timeout=IDLE_SECONDS)
        except Empty:
            return None if self._takes_idle_thread() else self._jobs.get()

    def _takes_idle_thread(self) -> bool:
        try:
            self._idle.pop()
        except IndexError:
            return False
        return True
