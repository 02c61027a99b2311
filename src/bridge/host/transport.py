"""The descriptors of one worker: frames that wait to be sent, what arrives, and the end of the worker.

Nothing here blocks or starts a thread. An event loop calls this module when a descriptor is ready: asyncio's, or the
small one of `background.py`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from bridge import errors
from bridge._framing import Outbox, Reader, set_buffer_size
from bridge.host._inbox import FINISH, RELEASE, Inbox
from bridge.host.worker import Worker

END_SECONDS = 1.0  # time for a worker to end by itself after one of its pipes was closed
MEMORY_SECONDS = 1.0  # until memory of long frames is released that is not used again
STDERR_SECONDS = 0.05  # until the worker's output is passed on again after this process's stderr accepted none
DRAIN_SECONDS = 0.5  # for the last output of a worker that has ended; a child of it may hold its stderr open


class Loop(Protocol):
    """The methods of asyncio.AbstractEventLoop that `Transport` needs."""

    def add_reader(self, fd: int, callback: Callable[[], Any], /) -> object: ...
    def remove_reader(self, fd: int, /) -> object: ...
    def add_writer(self, fd: int, callback: Callable[[], Any], /) -> object: ...
    def remove_writer(self, fd: int, /) -> object: ...
    def call_later(self, delay: float, callback: Callable[[], Any], /) -> object: ...


class Transport:
    """The descriptors of a worker. Its callbacks run in `loop`; the other methods may be called from any thread.

    serve(kind, subject): does the jobs of the inbox. A BridgeError that it raises ends the worker.
    progressed(): called, with the lock held, when a frame has been sent or the worker's stdin has been closed.
    lost(): called once, after the worker has ended and everything that it sent was delivered.
    lock: held during each write; reentrant, because a destructor may send while its thread sends.
    inbox: the open calls. end_reason: the reason why nothing can be sent anymore; None while the connection is open.
    is_abandoned: whether nobody wants to know the last output of the worker.
    """

    def __init__(
        self,
        worker: Worker,
        max_frame: int,
        loop: Loop,
        serve: Callable[[int, Any], None],
        progressed: Callable[[], None],
        lost: Callable[[], None],
        lock: threading.RLock,
    ) -> None:
        self.worker = worker
        self.end_reason: str | None = None
        self.is_input_closed = False
        self.is_abandoned = False
        self._is_lost = False
        self._loop = loop
        self._serve = serve
        self._progressed = progressed
        self._lost = lost
        self._lock = lock
        self._pending: deque[Outbox] = deque()
        self._is_writing_later = False
        for fd in (worker.input_fd, worker.output_fd):
            set_buffer_size(fd)
        self.inbox = Inbox(Reader(worker.output_fd, max_frame))

    def watch(self) -> None:
        """Make the loop call this object when a descriptor is ready."""
        self._loop.add_reader(self.worker.output_fd, self._read)
        self._loop.add_reader(self.inbox.jobs_fd, self._notice_jobs)
        self._loop.add_reader(self.worker.exit_fd, self._end)
        if self.worker.stderr_fd >= 0:
            self._loop.add_reader(self.worker.stderr_fd, self._pass_on_stderr)

    def write(self, outbox: Outbox) -> bool:
        """Write a frame, and return whether the pipe has accepted all of it. The loop writes the rest later.

        Raises ConnectionError if the connection has ended. The frame is dropped if the worker has closed its stdin, but
        it is not known yet how the worker ends.
        """
        with self._lock:
            if self.end_reason is not None:
                raise ConnectionResetError(errno.ECONNRESET, "the connection has ended")
            if self.is_input_closed:
                return False
            # Queue first: an exception from a signal handler must not lose the rest of a partly written frame.
            self._pending.append(outbox)
            if len(self._pending) == 1:
                self._write_pending()
                if not self._pending:
                    return True
            # Even if it is watched already: a signal handler may have interrupted the code that was about to do that.
            if not self.is_input_closed:
                self._is_writing_later = True
                self._loop.add_writer(self.worker.input_fd, self._write_later)
            return False

    def withdraw(self, outbox: Outbox) -> bool:
        """Do not send a frame that waits to be sent, and return True; False if a part of it has been sent."""
        with self._lock:
            if outbox.sent or outbox not in self._pending:
                return False
            self._pending.remove(outbox)
            return True

    def first_pending(self) -> Outbox | None:
        """Return the frame that is being sent; None if no frame waits."""
        try:
            return self._pending[0]
        except IndexError:
            return None

    def close(self, reason: str) -> None:
        """Close the worker's stdin after the pending frames. `reason` is what later senders see."""
        with self._lock:
            self.end_reason = self.end_reason or reason
            if not self._pending:
                self._close_input()

    def end_worker(self, reason: str) -> None:
        """End a worker that cannot be used anymore."""
        if not self.worker.has_ended:
            with self._lock:
                self.end_reason = self.end_reason or f"{reason}; {self.worker.killed}"
            self.worker.kill()

    def _write_pending(self) -> None:
        try:
            while self._pending and (first := self._pending[0]).write_to(self.worker.input_fd):
                # A signal handler that has called the worker meanwhile may have waited until the frame was removed.
                if self._pending and self._pending[0] is first:
                    self._pending.popleft()
        except OSError:
            self._close_input()
            self.inbox.add_job(FINISH, self.worker.input_closed)

    def _write_later(self) -> None:
        with self._lock:
            if not self.is_input_closed:
                self._write_pending()
            if not self._pending and not self.is_input_closed:
                self._is_writing_later = False
                self._loop.remove_writer(self.worker.input_fd)
            if self.end_reason is not None and not self._pending:
                self._close_input()
            self._progressed()

    def _close_input(self) -> None:
        if self.is_input_closed:
            return
        self.is_input_closed = True
        self._pending.clear()
        if self._is_writing_later:
            self._is_writing_later = False
            self._loop.remove_writer(self.worker.input_fd)
        self.worker.close("input_fd")
        self._progressed()

    def _read(self) -> None:
        try:
            self.inbox.read()
        except Exception as error:
            self.end_worker(f"the client failed while reading: {type(error).__name__}: {error}")
        self.do_jobs()

    def _notice_jobs(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.inbox.jobs_fd)
        self.do_jobs()

    def do_jobs(self) -> None:
        """Do the jobs of the inbox."""
        jobs = self.inbox.jobs
        while jobs:
            kind, subject = jobs.popleft()
            try:
                if kind == FINISH:
                    self._finish(subject)
                elif kind == RELEASE:
                    self._release_later()
                else:
                    self._serve(kind, subject)
            except errors.BridgeError as error:
                self.end_worker(f"the worker sent a frame that cannot be read: {error}")
            except Exception as error:
                self.end_worker(f"the client failed while reading: {type(error).__name__}: {error}")

    def _release_later(self) -> None:
        self._loop.call_later(MEMORY_SECONDS, self._release_memory)

    def _release_memory(self) -> None:
        if not self.inbox.release_memory():
            self._release_later()

    def _finish(self, fault: str | Exception | None) -> None:
        """Wait for the end of a worker that has closed a descriptor; end one that has sent what cannot be read."""
        if isinstance(fault, str):
            self._end_later(fault)
            return
        self._loop.remove_reader(self.worker.output_fd)
        if fault is None or isinstance(fault, errors.InvalidFrame):
            self._end_later(self.worker.output_closed)
        elif isinstance(fault, errors.BridgeError):
            self.end_worker(f"the worker sent a frame that cannot be read: {fault}")
        else:
            self.end_worker(f"the client failed while reading: {fault}")

    def _end_later(self, reason: str) -> None:
        self._loop.call_later(END_SECONDS, lambda: self.end_worker(reason))

    def _pass_on_stderr(self) -> None:
        loop, fd = self._loop, self.worker.stderr_fd
        try:
            if self.worker.pass_on_stderr():
                return
            self._close("stderr_fd")
            if self.worker.has_ended:
                self._lose()
        except BlockingIOError:
            loop.remove_reader(fd)
            loop.call_later(STDERR_SECONDS, self._resume_stderr)

    def _resume_stderr(self) -> None:
        if self.worker.stderr_fd >= 0:
            self._loop.add_reader(self.worker.stderr_fd, self._pass_on_stderr)

    def _end(self) -> None:
        """Deliver what a worker that has ended had sent, and wait for the rest of its output, which is on its way."""
        if not self.inbox.read_rest():
            return  # this method is called again at once
        if not self.worker.reap():
            self._end_later(self.worker.output_closed)
            return
        with self._lock:
            self.end_reason = self.end_reason or self.worker.describe_end()
            self._close_input()
        self.do_jobs()
        self._loop.remove_reader(self.worker.output_fd)
        self._close("exit_fd")
        if self.worker.stderr_fd >= 0 and not self.is_abandoned:
            self._loop.call_later(DRAIN_SECONDS, self._lose)
        else:
            self._lose()

    def _lose(self) -> None:
        """End the connection, unless that has been done."""
        if not self._is_lost:
            self._is_lost = True
            self._close("output_fd", "stderr_fd")
            self._lost()
            self.do_jobs()
            self._loop.remove_reader(self.inbox.jobs_fd)

    def _close(self, *names: str) -> None:
        for which in names:
            if (fd := getattr(self.worker, which)) >= 0:
                self._loop.remove_reader(fd)
                self.worker.close(which)
