"""The order in which a node starts the calls that arrive: those of a session, and those that all workers get."""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from bridge.host.threads import Job

LANES = 16  # threads that start calls at a time; a start may wait for a worker that is slow to read
SHARED = -1  # in place of the lane of a shared job

Run = Callable[[Job], object]


class Order:
    """Runs jobs that may wait a little on a few threads: those with the same key one after the other.

    A shared job runs when all before it have ended, and those after it run when it has ended. run: runs a job on a
    thread.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._lanes: list[deque[Job]] = [deque() for _ in range(LANES)]
        self._busy = [False] * LANES
        self._next = itertools.cycle(range(LANES))
        self._waiting: deque[tuple[int, Job]] = deque()  # from the first shared job on, with their lanes

    def add(self, key: str | None, job: Job) -> None:
        """Run a job after the earlier ones with the same key, if it has one."""
        with self._lock:
            lane = next(self._next) if key is None else hash(key) % LANES
            if self._waiting:
                self._waiting.append((lane, job))
            else:
                self._start(lane, job)

    def add_shared(self, job: Job) -> None:
        """Run a job between the ones before and the ones after it."""
        with self._lock:
            self._waiting.append((SHARED, job))
            if len(self._waiting) == 1:
                self._advance()

    def _start(self, lane: int, job: Job) -> None:
        self._lanes[lane].append(job)
        if not self._busy[lane]:
            self._busy[lane] = True
            self._run(partial(self._run_lane, lane))

    def _advance(self) -> None:
        """Start the first shared job if no other one runs; it stays the first one until it has ended."""
        if self._waiting and not any(self._busy):
            self._run(partial(self._run_shared, self._waiting[0][1]))

    def _run_lane(self, lane: int) -> None:
        while True:
            with self._lock:
                if not self._lanes[lane]:
                    self._busy[lane] = False
                    self._advance()
                    return
                job = self._lanes[lane].popleft()
            _do(job)

    def _run_shared(self, job: Job) -> None:
        _do(job)
        with self._lock:
            self._waiting.popleft()
            while self._waiting and self._waiting[0][0] != SHARED:
                self._start(*self._waiting.popleft())
            self._advance()


def _do(job: Job) -> None:
    try:
        job()
    except BaseException:
        logging.getLogger("bridge.ray").exception("a call could not be started")
