"""Who runs a call that is not inline: a pool of threads, and the order of calls in a session."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]

STACK_BYTES = 8 << 20  # virtual; deep recursion in C crashes on smaller ones


class Lanes:
    """Up to `threads` threads, started as they are needed. Jobs must not raise."""

    def __init__(self, threads: int) -> None:
        self.limit = threads
        self._jobs: SimpleQueue[Job] = SimpleQueue()
        self._lock = threading.Condition()
        self._threads = 0
        self._unfinished = 0

    def submit(self, job: Job) -> None:
        """Run `job` on a thread, as soon as one is free."""
        with self._lock:
            self._unfinished += 1
            if self._unfinished > self._threads and self._threads < self.limit:
                self._start_thread()
        self._jobs.put(job)

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is unfinished, at most `timeout` seconds; whether that came."""
        with self._lock:
            return self._lock.wait_for(lambda: self._unfinished == 0, timeout)

    @property
    def unfinished(self) -> int:
        """Jobs submitted and not finished, running or not."""
        return self._unfinished

    def _start_thread(self) -> None:
        self._threads += 1
        # daemon: a handler that never returns must not keep the process.
        previous = threading.stack_size(STACK_BYTES)
        try:
            name = f"bridge-lane-{self._threads}"
            threading.Thread(target=self._work, name=name, daemon=True).start()
        finally:
            threading.stack_size(previous)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            job()
            del job  # or an idle thread keeps the last request alive
            with self._lock:
                self._unfinished -= 1
                if not self._unfinished:
                    self._lock.notify_all()


class Order:
    """First come, first served: each job starts when the one before it has left."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[Job] = deque()

    def enter(self, start: Job) -> None:
        """Call `start` when it is its turn, perhaps at once; `leave` ends that turn."""
        with self._lock:
            if self._taken:
                self._waiting.append(start)
                return
            self._taken = True
        start()

    def leave(self) -> None:
        """End the turn of the job that has it."""
        with self._lock:
            if not self._waiting:
                self._taken = False
                return
            start = self._waiting.popleft()
        start()
