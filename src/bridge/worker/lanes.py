"""Who runs a call that is not inline: a pool of threads, and the order of calls in a session."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import SimpleQueue

from bridge import errors
from bridge._histogram import now_ns

STACK_BYTES = 8 << 20  # virtual; deep recursion in C crashes on smaller ones


class Job:
    """Something to run once. A job that is written off while it runs has lost its thread.

    waits: how many of its threads wait for the host.
    """

    __slots__ = ("_run", "lost", "thread", "waits")

    def __init__(self, run: Callable[[], None]) -> None:
        self._run: Callable[[], None] | None = run
        self.thread = 0  # that runs it
        self.lost = False
        self.waits = 0

    def __call__(self) -> None:
        run, self._run = self._run, None  # or an idle thread keeps the last request alive
        if run is not None:
            run()


class Lanes:
    """Up to `threads` threads, started as they are needed, and as many again in place of lost
    ones. When even those are lost, jobs wait until one comes back. Jobs must not raise.

    waiting: how many jobs may wait for the host at once; their threads are not counted.
    """

    def __init__(self, threads: int, waiting: int) -> None:
        self.limit = threads
        self.waiting_limit = waiting
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Condition()
        self._threads = 0  # without the lost ones
        self._alive: set[threading.Thread] = set()  # with them
        self._unfinished = 0
        self._waiting = 0  # of the unfinished jobs, those that wait for the host
        self._lost = 0
        self._written_off = 0
        self._progressed_ns = 0
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Run `job` on a thread, as soon as one is free; behind a `stop` on the caller's."""
        with self._lock:
            self._unfinished += 1
            if self._unfinished - self._waiting == self.limit:
                self._progressed_ns = now_ns()
            self._start_thread_if_needed()
            # Also where the system gives us no thread: late for others, but not lost.
            stranded = self._stopped or not (self._threads or self._lost or self._waiting)
            if not stranded:
                self._jobs.put(job)
        if stranded:
            self._finish(job)

    def write_off(self, job: Job) -> bool:
        """Nobody waits for `job` any more: another thread takes the place of the one it keeps;
        whether it keeps one.

        Nothing to do where it has none, or where that is the caller's: it is coming back.
        """
        with self._lock:
            if job.thread not in (0, threading.get_ident()) and not job.lost:
                job.lost = True
                self._lost += 1
                self._written_off += 1
                self._progressed_ns = now_ns()
                if job.waits:
                    self._waiting -= 1
                else:
                    self._threads -= 1
                self._unfinished -= 1
                self._start_thread_if_needed()
                self._lock.notify_all()
                return True
        return False

    @contextmanager
    def waiting_for_host(self, job: Job) -> Iterator[None]:
        """Another thread takes the place of the job's meanwhile. When the job goes on, there may
        be more than `limit` threads for a while.

        Raises Overloaded where too many jobs wait already.
        """
        with self._lock:
            if self._waiting >= self.waiting_limit:
                raise errors.Overloaded(
                    f"{self._waiting} calls wait for the host already (--waiting)",
                    limit=self.waiting_limit,
                    retry_after=errors.RETRY_AFTER,
                )
            job.waits += 1
            if job.waits == 1 and not job.lost:
                self._waiting += 1
                self._threads -= 1
                self._start_thread_if_needed()
        try:
            yield
        finally:
            with self._lock:
                job.waits -= 1
                if not job.waits and not job.lost:
                    self._waiting -= 1
                    self._threads += 1
                    self._progressed_ns = now_ns()

    def drain(self, timeout: float) -> bool:
        """Wait until nothing is unfinished, at most `timeout` seconds; whether that came."""
        with self._lock:
            return self._lock.wait_for(lambda: self._unfinished == 0, timeout)

    def stop(self, timeout: float) -> int:
        """End the threads, behind what is submitted; how many are still there after `timeout`
        seconds, because their jobs do not come back."""
        ending = time.monotonic() + timeout
        with self._lock:
            self._stopped = True
            threads = list(self._alive)
            for _ in threads:
                self._jobs.put(None)
        for thread in threads:
            thread.join(max(0.0, ending - time.monotonic()))
        return sum(thread.is_alive() for thread in threads)

    @property
    def unfinished(self) -> int:
        """Jobs submitted and not finished, running or not; without those written off."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Jobs whose threads wait for the host."""
        return self._waiting

    @property
    def is_full(self) -> bool:
        """Whether a job submitted now would have to wait for another one's thread."""
        return self._lost > self.limit or self._unfinished - self._waiting >= self.limit

    @property
    def progressed_ns(self) -> int:
        """When a thread last came back or became busy as the last one; monotonic."""
        return self._progressed_ns

    @property
    def lost(self) -> int:
        """Threads that jobs written off still keep."""
        return self._lost

    @property
    def written_off(self) -> int:
        """Jobs written off since the start."""
        return self._written_off

    def _start_thread_if_needed(self) -> None:
        if self._stopped or not self._is_short() or self._lost > self.limit:
            return
        self._threads += 1
        # daemon: a handler that never returns must not keep the process.
        previous = threading.stack_size(STACK_BYTES)
        try:
            name = f"bridge-lane-{self._threads}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._alive.add(thread)
            thread.start()
        except RuntimeError:
            self._alive.discard(thread)
            self._threads -= 1
        finally:
            threading.stack_size(previous)

    def _takes_a_place(self) -> bool:
        """Whether a thread that was lost is needed again; then it is one of ours."""
        is_needed = not self._stopped and self._is_short()
        self._threads += is_needed
        return is_needed

    def _is_short(self) -> bool:
        return self._threads < min(self._unfinished - self._waiting, self.limit)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and self._finish(job):
            pass
        with self._lock:
            self._threads -= job is None
            self._alive.discard(threading.current_thread())

    def _finish(self, job: Job) -> bool:
        """Run `job`; whether its thread is still one of ours."""
        job.thread = threading.get_ident()
        job()
        with self._lock:
            job.thread = 0
            self._progressed_ns = now_ns()
            if job.lost:
                self._lost -= 1
                return self._takes_a_place()
            self._unfinished -= 1
            if not self._unfinished:
                self._lock.notify_all()
            is_needed = self._threads <= self.limit  # else it went on behind the one in its place
            self._threads -= not is_needed
            return is_needed


_ordering = threading.Lock()  # one for all, because there are many orders; held for a moment only


class Order:
    """First come, first served: each job starts when the one before it has left."""

    __slots__ = ("_ended", "_is_passing", "_is_taken", "_waiting")

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: deque[Callable[[], None]] | None = None
        self._ended = 0  # turns that are over, and not passed on yet
        self._is_passing = False

    @property
    def is_taken(self) -> bool:
        """Whether a job has its turn, or waits for it."""
        return self._is_taken

    def enter(self, start: Callable[[], None]) -> None:
        """Call `start` when it is its turn, perhaps at once; `leave` ends that turn."""
        with _ordering:
            if self._is_taken:
                if self._waiting is None:
                    self._waiting = deque()
                self._waiting.append(start)
                return
            self._is_taken = True
        start()

    def leave(self) -> None:
        """End the turn of the job that has it. One that starts by that and leaves at once does not
        start the next itself: there may be thousands of them."""
        with _ordering:
            self._ended += 1
            if self._is_passing:
                return
            self._is_passing = True
        while (start := self._next()) is not None:
            start()

    def _next(self) -> Callable[[], None] | None:
        with _ordering:
            while self._ended:
                self._ended -= 1
                if self._waiting:
                    return self._waiting.popleft()
                self._is_taken = False
            self._is_passing = False
            return None


class Places:
    """A call's places in the orders of what it changes and needs.

    held: orders in which the calls behind it wait until it leaves. passed: those in which it waits
    for the calls before it, and holds up nobody. on_pass(): called whenever it passed one of them.
    start(): called when it has the turn in all of them.
    """

    __slots__ = ("_held", "_is_over", "_missing", "_on_pass", "_orders", "_start", "has_turn")

    def __init__(
        self,
        held: Sequence[Order],
        start: Callable[[], None],
        passed: Sequence[Order] = (),
        on_pass: Callable[[], None] | None = None,
    ) -> None:
        self._orders = [*((order, True) for order in held), *((order, False) for order in passed)]
        self._missing = len(self._orders)
        self._start = start
        self._on_pass = on_pass
        self._held: list[Order] = []
        self._is_over = False
        self.has_turn = False

    def enter(self) -> None:
        """Take the places."""
        for order, holds in self._orders:
            order.enter(partial(self._arrived, order, holds))
        if not self._orders:
            self._start()

    def leave(self) -> None:
        """Give back those that are held, and the others as they come: `start` is not called any
        more. Once, or again."""
        with _ordering:
            self._is_over = True
            self.has_turn = False
            held, self._held = self._held, []
        for order in held:
            order.leave()

    def _arrived(self, order: Order, holds: bool) -> None:
        if not holds and self._on_pass is not None:
            self._on_pass()
        with _ordering:
            is_over = self._is_over
            if not is_over:
                if holds:
                    self._held.append(order)
                self._missing -= 1
                self.has_turn = not self._missing
            starts = self.has_turn
        if is_over or not holds:
            order.leave()
        if starts and not is_over:
            self._start()
