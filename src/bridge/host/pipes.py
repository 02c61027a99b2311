"""The pipes to one worker process: send frames within a deadline, receive frames, notice the end.

A sender writes as much of its frame as the pipe accepts without blocking; a writer thread writes
the rest. A reader thread passes on what arrives. That thread never blocks on a write, so the worker
can always deliver its replies.
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
from bridge.host.launch import WorkerProcess

END_SECONDS = 1.0  # time for a worker to end by itself after one of its pipes was closed
CHECK_SECONDS = 0.05  # interval between two checks whether the reader is idle


class Pipes:
    """The pipes to a worker, usable from any number of threads.

    receive(frame): called on the reader thread for each frame; it must not block.
    refuse(beginning, error): called there for a frame that did not fit into memory.
    A BridgeError that either of them raises ends the worker.
    lost(): called once, on another thread, after the worker has ended.
    lock: held during each write; reentrant, because a destructor may send while its thread sends.
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
        self.end_reason: str | None = None  # why nothing can be sent anymore
        os.set_blocking(process.input_fd, False)
        for fd in (process.input_fd, process.output_fd):
            set_pipe_size(fd)
        self._frames = Reader(process.output_fd, max_frame)
        self._reader = threading.Thread(target=self._read, name="bridge-reader", daemon=True)
        self._reader.start()
        threading.Thread(target=self._await_end, name="bridge-end", daemon=True).start()

    def send(self, outbox: Outbox, deadline: float | None = None) -> None:
        """Send the frame in `outbox`, and wait until the pipe has accepted all of it.

        deadline: in seconds of time.monotonic(). Raises TimeoutError when it passes: the rest of a
        partly written frame is sent later, an unwritten frame is dropped. Raises ConnectionError
        if the worker has ended.
        """
        with self._lock:
            if self._write_or_queue(outbox):
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
        """Send a frame without waiting: what the pipe does not accept now is sent later.

        Does nothing if the worker has ended.
        """
        with self._lock:
            if not self._is_input_closed:
                with contextlib.suppress(OSError):  # the reader notices the end of the worker, too
                    self._write_or_queue(outbox)

    def close(self, reason: str, timeout: float | None) -> None:
        """Close the worker's stdin after pending frames, wait for its end, and kill it after `timeout` seconds.

        reason: what later senders see as `end_reason`. Kills the worker at once if the interpreter is ending.
        """
        if sys.is_finalizing():  # the other threads have stopped, perhaps while holding the lock
            self._process.end_without_threads()
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
        """Wait for the end of a worker that has closed its stdin, and kill it if it does not end.

        Does not wait if the end has a reason already, as after `close`.
        """
        if self.end_reason is None and not self._is_lost.wait(END_SECONDS):
            self._end_worker("the worker has closed its stdin")
            self._is_lost.wait()

    def _write_or_queue(self, outbox: Outbox) -> bool:
        """Write a frame, and return True if the pipe has accepted all of it; leave the rest to the writer thread."""
        if self.end_reason is not None or self._is_input_closed:
            raise ConnectionResetError(errno.ECONNRESET, "the connection has ended")
        # Queue first: an exception from a signal handler must not lose the rest of a partly written frame.
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
            except RuntimeError:  # out of threads: the next frame that has to wait tries again
                self._writer_wake = -1
                os.close(wake)
                raise
        else:
            self._changed.notify_all()

    def _write(self) -> None:
        """Write pending frames whenever the pipe accepts some, until the worker's stdin is closed."""
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
        """Close the worker's stdin."""
        with self._lock:
            if self._is_input_closed:
                return
            self._is_input_closed = True
            if self._writer_wake >= 0:
                # The writer thread polls the descriptor, so that thread closes it.
                os.eventfd_write(self._writer_wake, 1)
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
                del frame  # it may be large, and the next one may arrive much later
        except errors.BridgeError as error:
            self._end_worker(f"the worker sent a frame that cannot be read: {error}")
        except Exception as error:
            self._end_worker(f"the client failed while reading: {type(error).__name__}: {error}")
        else:
            if not self._process.has_ended.wait(END_SECONDS):
                self._end_worker("the worker has closed its stdout")
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

    def _end_worker(self, reason: str) -> None:
        """Kill a worker that cannot be used anymore."""
        with self._lock:
            self.end_reason = self.end_reason or f"{reason}; it was ended"
        self._process.kill()

    def _await_end(self) -> None:
        try:
            self._process.wait()
            self._drain()
            with self._lock:
                self.end_reason = self.end_reason or self._process.describe_end()
            self._close_input()
            self._lost()
        finally:
            self._is_lost.set()

    def _drain(self) -> None:
        """Wait until the reader has passed on everything that the worker had sent.

        The reader may never see the end of the pipe: a child of the worker may hold it open.
        """
        idle_checks = 0
        while self._reader.is_alive() and idle_checks < 2:
            self._reader.join(CHECK_SECONDS)
            is_busy = self._is_receiving or self._has_unread()
            idle_checks = 0 if is_busy else idle_checks + 1

    def _has_unread(self) -> bool:
        fd = self._process.output_fd
        if fd < 0:
            return False
        poll = select.poll()  # select() fails for large descriptors, and for one that the reader closes meanwhile
        poll.register(fd, select.POLLIN)
        return any(events & select.POLLIN for _, events in poll.poll(0))
