"""The pool of threads that runs the calls that are not inline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue

from bridge import errors
from bridge._histogram import now_ns
from bridge.worker import limits

STACK_BYTES = 8 << 20  # virtual; deep recursion in C crashes on smaller ones


class Job:
    """Represents a function to run once.

    thread: the identity of the thread that runs it; 0 before and after. lost: whether it has been written off while it
    ran; its thread is lost until it returns. waits: how many of its threads wait for the host.
    """

    __slots__ = ("_run", "lost", "thread", "waits")

    def __init__(self, run: Callable[[], None]) -> None:
        self._run: Callable[[], None] | None = run
        self.thread = 0
        self.lost = False
        self.waits = 0

    def __call__(self) -> None:
        run, self._run = self._run, None  # an idle thread must not keep the last request alive
        if run is not None:
            run()

    def drop(self) -> bool:
        """Drop the function, unless a thread runs it already. Return whether it was dropped.

        The job may remain in the queue, but it keeps nothing in memory.
        """
        if self.thread:
            return False
        self._run = None
        return True


class Threads:
    """Runs jobs on up to `limit` threads, which are started when they are needed, and up to as many more in place of
    lost ones.

    When those are lost too, jobs wait until a lost thread returns. Jobs must not raise. waiting_limit: how many jobs
    may wait for the host at once; their threads do not count towards `limit`.
    """

    def __init__(self, limit: int, waiting_limit: int) -> None:
        self.limit = limit
        self.waiting_limit = waiting_limit
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Condition()
        self._threads = 0  # without the lost ones
        self._alive: set[threading.Thread] = set()  # with them
        self._helpers = 0
        self._unfinished = 0
        self._waiting = 0  # of the unfinished jobs, those that wait for the host
        self._lost = 0
        self._written_off = 0
        self._progressed_ns = 0
        self._stopped = False

    def submit(self, job: Job) -> None:
        """Run `job` on the next free thread; after `stop`, on the thread of the caller."""
        with self._lock:
            self._unfinished += 1
            if self._unfinished - self._waiting == self.limit:
                self._progressed_ns = now_ns()
            self._start_thread_if_needed()
            # The caller also runs the job if the system cannot start any thread.
            stranded = self._stopped or not (self._threads or self._lost or self._waiting)
            if not stranded:
                self._jobs.put(job)
        if stranded:
            self._finish(job)

    def write_off(self, job: Job) -> bool:
        """Replace the thread that runs `job`, because its call is over. Return whether it was replaced.

        It is not if no thread runs the job, or if the thread of the caller does, which is about to return.
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
        """Let another thread run in place of the job's thread while the job waits for the host.

        When the job continues, there may be more than `limit` threads for a while. Raises Overloaded if too many jobs
        wait already.
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

    def run_together(self, run: Callable[[], None], count: int, stop: Callable[[], None]) -> None:
        """Call run() on the current thread and on up to `count` - 1 others, which have its context variables.

        Return when all have returned. If one raises, call stop(), which makes the others return soon, and raise the
        first error when they have.
        """
        errors: list[BaseException] = []

        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                errors.append(error)
                stop()

        helpers: list[threading.Thread] = []
        while len(helpers) < count - 1 and not errors:
            helper = threading.Thread(target=copy_context().run, args=(guarded,), name="bridge-helper", daemon=True)
            with self._lock:
                self._helpers += 1
                if not self._start(helper):
                    self._helpers -= 1
                    break
            helpers.append(helper)
        guarded()
        for helper in helpers:
            helper.join()
        with self._lock:
            self._helpers -= len(helpers)
            self._exempt_stacks()
        del errors[1:]  # they refer to this list
        if errors:
            raise errors.pop()

    def drain(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds until all jobs are finished or written off. Return whether they are."""
        with self._lock:
            return self._lock.wait_for(lambda: self._unfinished == 0, timeout)

    def stop(self, timeout: float) -> int:
        """End the threads after the submitted jobs. Return how many have not ended within `timeout` seconds."""
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
        """Return how many jobs are submitted and neither finished nor written off."""
        return self._unfinished

    @property
    def waiting(self) -> int:
        """Return how many jobs wait for the host."""
        return self._waiting

    @property
    def is_full(self) -> bool:
        """Return whether a job submitted now would have to wait for a thread."""
        return self._lost > self.limit or self._unfinished - self._waiting >= self.limit

    @property
    def progressed_ns(self) -> int:
        """Return when a job last finished or took the last free thread: monotonic nanoseconds."""
        return self._progressed_ns

    @property
    def lost(self) -> int:
        """Return how many threads still run jobs that were written off."""
        return self._lost

    @property
    def written_off(self) -> int:
        """Return how many jobs have been written off since the start."""
        return self._written_off

    def _start_thread_if_needed(self) -> None:
        if self._stopped or not self._is_short() or self._lost > self.limit:
            return
        self._threads += 1
        # daemon: a handler that never returns must not keep the process alive.
        thread = threading.Thread(target=self._work, name=f"bridge-thread-{self._threads}", daemon=True)
        self._alive.add(thread)
        if not self._start(thread):
            self._alive.discard(thread)
            self._threads -= 1

    def _start(self, thread: threading.Thread) -> bool:
        """Start a thread that has been counted. Return whether the system could start it."""
        self._exempt_stacks()
        previous = threading.stack_size(STACK_BYTES)
        try:
            with limits.lifted():
                thread.start()
        except (RuntimeError, MemoryError):
            return False
        finally:
            threading.stack_size(previous)
        return True

    def _exempt_stacks(self) -> None:
        limits.exempt_stacks((len(self._alive) + self._helpers) * STACK_BYTES)

    def _is_needed_again(self) -> bool:
        """Return whether a thread that was lost is needed; if so, count it again."""
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
            self._exempt_stacks()

    def _finish(self, job: Job) -> bool:
        """Run `job`. Return whether its thread is to run other jobs."""
        job.thread = threading.get_ident()
        job()
        with self._lock:
            job.thread = 0
            self._progressed_ns = now_ns()
            if job.lost:
                self._lost -= 1
                return self._is_needed_again()
            self._unfinished -= 1
            if not self._unfinished:
                self._lock.notify_all()
            is_needed = self._threads <= self.limit  # otherwise another thread has replaced it while it waited
            self._threads -= not is_needed
            return is_needed
