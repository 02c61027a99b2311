"""The frames between a template and the host that has started it, on the template's stdin and stdout."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from typing import Any

from bridge.wire.codec import Format

LONGEST_MESSAGE = 1 << 16  # bytes that the host may send in a frame
MOST_PENDING = 1 << 20  # bytes of messages that wait for a host that does not read
CHUNK = 1 << 16

_log = logging.getLogger("bridge.template")


class ControlFailed(Exception):
    """Raised if there is no pipe from a host."""


class Control:
    """The two pipes to the host. Never waits: messages that the host does not read are collected, up to 1 MiB.

    Raises ControlFailed if the host could not be heard.
    """

    def __init__(self, read_fd: int, write_fd: int, format: Format) -> None:
        mode = os.fstat(read_fd).st_mode
        if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
            raise ControlFailed("--control: stdin is neither a pipe nor a socket")
        os.set_blocking(read_fd, False)
        os.set_blocking(write_fd, False)
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._format = format
        self._received = b""
        self._pending = bytearray()
        self._lost = 0

    def send(self, message: dict[str, Any]) -> None:
        """Send a message, now or when the host reads. It is lost if too many wait already."""
        if len(self._pending) > MOST_PENDING:
            self._lost += 1
            if self._lost == 1:
                _log.warning("the host does not read the control pipe: messages to it are lost")
            return
        payload = self._format.encode(message)
        self._pending += struct.pack(">I", len(payload)) + payload
        self.flush()

    def flush(self) -> None:
        """Write as many of the pending messages as the pipe accepts."""
        try:
            while self._pending:
                del self._pending[: os.write(self.write_fd, self._pending)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads anymore: the end of the other pipe ends the template
            self._pending.clear()

    @property
    def is_pending(self) -> bool:
        """Return whether messages wait for the host to read."""
        return bool(self._pending)

    def receive(self) -> list[dict[str, Any]] | None:
        """Return the messages that have arrived; None at the end of the pipe. Raises ValueError for any other bytes."""
        try:
            chunk = os.read(self.read_fd, CHUNK)
        except BlockingIOError:
            return []
        except OSError:  # a socket whose other end has been closed with bytes unread
            return None
        if not chunk:
            return None
        self._received += chunk
        messages = []
        while len(self._received) >= 4:
            (length,) = struct.unpack(">I", self._received[:4])
            if length > LONGEST_MESSAGE:
                raise ValueError(f"a frame of {length} bytes on the control pipe")
            if len(self._received) < 4 + length:
                break
            payload, self._received = self._received[4 : 4 + length], self._received[4 + length :]
            if not payload:
                continue  # a heartbeat
            message = self._format.decode_or_none(payload, dict[str, Any])
            if message is None:
                raise ValueError("a frame on the control pipe that is no map")
            messages.append(message)
        return messages

    @contextlib.contextmanager
    def interrupting(self, end: Callable[[], None]) -> Iterator[None]:
        """Inside the `with` statement, call `end` on the main thread when the host is gone, whatever runs there.

        By a signal, because a thread would have to be gone before a fork.
        """

        def check(*_: object) -> None:
            if any(event & select.POLLHUP for _, event in poll.poll(0)):
                end()

        poll = select.poll()
        poll.register(self.read_fd, 0)
        signal.signal(signal.SIGIO, check)
        fcntl.fcntl(self.read_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(self.read_fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
        try:
            check()
            yield
        finally:
            fcntl.fcntl(self.read_fd, fcntl.F_SETFL, os.O_NONBLOCK)
            signal.signal(signal.SIGIO, signal.SIG_DFL)

    def close(self) -> None:
        """Close the pipes."""
        os.close(self.read_fd)
        os.close(self.write_fd)
