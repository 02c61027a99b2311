"""Frames to and from one worker process.

Whoever sends a frame writes it as far as the pipe takes it without waiting; what is left is
written by a writer thread. A reader thread hands on what arrives. It never writes where it would
have to wait, so the worker can always get rid of its replies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from bridge import errors
from bridge._framing import Frame, Outbox, Reader, set_pipe_size
from bridge.host.process import WorkerProcess

END_SECONDS = 1.0  # that a worker whose pipe is closed has to end by itself
CHECK_SECONDS = 0.05  # between two looks at whether a reader is idle


class Connection:
    """The pipes to a worker, usable from any number of threads.

    receive(frame): called on the reader thread for each frame; it must not wait. refuse(beginning,
    error): the same for a frame that there was no memory for. A BridgeError that they raise ends
    the connection and the worker. lost(): called once, on a thread of the
    connection's, when the worker is gone. lock: held while something is sent.
    """

    def __init__(
        self,
        process: WorkerProcess,
        max_frame: int,
        receive: Callable[[Frame], None],
        refuse: Callable[[Frame, errors.BridgeError], None],
        lost: Callable[[], None],
        lock: threading.RLock,
    ) -> None:
        self._process = process
        self._receive = receive
        self._refuse = refuse
        self._lost = lost
        self._pending: deque[Outbox] = deque()
        self._lock = lock
        self._changed = threading.Condition(lock)
        self._writer_wake = -1  # an eventfd, once there is a writer thread
        self._is_input_closed = False
        self._is_lost = threading.Event()
        self._is_receiving = False
        self.end_reason: str | None = None  # why nothing can be sent any more
        os.set_blocking(process.input_fd, False)
        for fd in (process.input_fd, process.output_fd):
            set_pipe_size(fd)
        self._frames = Reader(process.output_fd, max_frame)
        self._reader = threading.Thread(target=self._read, name="bridge-reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, name="bridge-end", daemon=True).start()

    def send(self, outbox: Outbox, deadline: float | None = None) -> None:
        """Send the frame in `outbox`, waiting until the pipe has taken all of it.

        deadline: of time.monotonic(). Raises TimeoutError when it has passed: of a frame that has
        begun to leave, the rest follows later, any other is not sent. Raises ConnectionError when
        the worker is gone.
        """
        with self._lock:
            if self._written(outbox):
                return
            try:
                while outbox.sent < len(outbox) and not self._is_input_closed:
                    left = None if deadline is None else deadline - time.monotonic()
                    if not self._changed.wait(left):
                        raise TimeoutError
            finally:
                if not outbox.sent and outbox in self._pending:
                    self._pending.remove(outbox)
            if outbox.sent < len(outbox):
                raise ConnectionResetError(errno.ECONNRESET, "the connection has ended")

    def post(self, outbox: Outbox) -> None:
        """Send a frame without waiting; one that the pipe does not take now follows later. Does
        nothing when the worker is gone."""
        with self._lock:
            if not self._is_input_closed:
                with contextlib.suppress(OSError):  # the reader notices that, too
                    self._written(outbox)

    def close(self, reason: str, timeout: float | None) -> None:
        """Close the worker's stdin, once what is being sent has left it or `timeout` seconds are
        over. Wait until the worker has ended, at most as long; then end it. While the interpreter
        is ending, it is ended at once."""
        if sys.is_finalizing():  # the other threads are gone, perhaps with the lock
            self._process.end_alone()
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self.end_reason = self.end_reason or reason
            self._changed.wait_for(lambda: not self._pending or self._is_input_closed, timeout)
            self._close_input()
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._process.has_ended.wait(left):
            self._process.kill()
        self._is_lost.wait()

    def wait_until_lost(self) -> None:
        """Wait for the end of a worker that does not read any more; end it if it lives on. Does not
        wait for one that was told to end."""
        if self.end_reason is None and not self._is_lost.wait(END_SECONDS):
            self._break("the worker has closed its stdin")
            self._is_lost.wait()

    def _written(self, outbox: Outbox) -> bool:
        """Whether the frame has left at once; else it is pending."""
        if self.end_reason is not None or self._is_input_closed:
            raise ConnectionResetError(errno.ECONNRESET, "the connection has ended")
        # Pending first: an exception of a signal handler must not lose a frame that has begun.
        self._pending.append(outbox)
        if len(self._pending) == 1 and outbox.write_to(self._process.input_fd):
            self._pending.popleft()
            return True
        self._wake_writer()
        return False

    def _wake_writer(self) -> None:
        if self._writer_wake < 0:
            wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            writer = threading.Thread(target=self._write, name="bridge-writer", daemon=True)
            self._writer_wake = wake
            try:
                writer.start()
            except RuntimeError:  # no more threads: the next frame that has to wait tries again
                self._writer_wake = -1
                os.close(wake)
                raise
        else:
            self._changed.notify_all()

    def _write(self) -> None:
        """Write pending frames whenever the pipe takes some, until the input is closed."""
        process, poll = self._process, select.poll()
        poll.register(process.input_fd, select.POLLOUT)
        poll.register(self._writer_wake, select.POLLIN)
        while True:
            poll.poll()
            with self._lock:
                try:
                    while self._pending and not self._is_input_closed:
                        if not self._pending[0].write_to(process.input_fd):
                            break
                        self._pending.popleft()
                        self._changed.notify_all()
                    self._changed.wait_for(lambda: self._pending or self._is_input_closed)
                except OSError:
                    self._is_input_closed = True
                if self._is_input_closed:
                    self._pending.clear()
                    self._changed.notify_all()
                    process.close("input_fd")
                    os.close(self._writer_wake)
                    return

    def _close_input(self) -> None:
        """Let the worker see the end of its stdin."""
        with self._lock:
            if self._is_input_closed:
                return
            self._is_input_closed = True
            if self._writer_wake >= 0:
                os.eventfd_write(self._writer_wake, 1)  # that thread polls the descriptor
            else:
                self._process.close("input_fd")
            self._changed.notify_all()

    def _read(self) -> None:
        try:
            while (frame := self._next_frame()) is not None:
                if len(frame):
                    self._is_receiving = True
                    self._receive(frame)
                    self._is_receiving = False
                del frame  # it may be large, and the next may be long in coming
        except errors.BridgeError as error:
            self._break(f"the worker sent a frame that cannot be read: {error}")
        except Exception as error:
            self._break(f"the client cannot go on reading: {type(error).__name__}: {error}")
        else:
            if not self._process.has_ended.wait(END_SECONDS):
                self._break("the worker has closed its stdout")
        finally:
            self._process.close("output_fd")

    def _next_frame(self) -> Frame | None:
        while True:
            try:
                return self._frames.read()
            except errors.Overloaded as error:
                beginning, self._frames.unread = self._frames.unread, None
                assert beginning is not None
                self._refuse(beginning, error)

    def _break(self, reason: str) -> None:
        """End a worker that cannot be talked to any more."""
        with self._lock:
            self.end_reason = self.end_reason or f"{reason}; it was ended"
        self._process.kill()

    def _await_end(self) -> None:
        try:
            self._process.wait()
            self._drain()
            with self._lock:
                self.end_reason = self.end_reason or self._process.how_it_ended()
            self._close_input()
            self._lost()
        finally:
            self._is_lost.set()

    def _drain(self) -> None:
        """Wait until the reader has handed on what the worker has left behind. It may never see the
        end of the pipe, if a child of the worker holds that open."""
        idle_checks = 0
        while self._reader.is_alive() and idle_checks < 2:
            self._reader.join(CHECK_SECONDS)
            is_busy = self._is_receiving or self._has_unread()
            idle_checks = 0 if is_busy else idle_checks + 1

    def _has_unread(self) -> bool:
        fd = self._process.output_fd
        if fd < 0:
            return False
        poll = select.poll()  # select() refuses high numbers, and any that the reader closes here
        poll.register(fd, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))
