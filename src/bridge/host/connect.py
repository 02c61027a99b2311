"""Connect to a worker by a Unix socket: the address, why a connection fails, and how the worker's end is noticed."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import stat
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, NamedTuple

from bridge import errors
from bridge.addresses import unix_path
from bridge.host.worker import Worker, above_stderr, end_in_words

PAUSE = 0.01  # seconds until a server is asked again whose queue of connections is full


class Exit(NamedTuple):
    """Represents the end of a worker's process. status: negative for a signal, or None. stderr: its last lines."""

    status: int | None
    stderr: str


# Reports the end of the process with this id, or None if it will not be known. Calls back in any thread.
Exits = Callable[[int, Callable[[Exit | None], None]], None]


class Attempt:
    """An attempt to connect to `address`, which takes at most `timeout` seconds.

    exits: of the template, if this host has started it. Raises ValueError for an address that cannot be one.
    """

    def __init__(self, address: str, timeout: float | None, exits: Exits | None = None) -> None:
        self._address = address
        self._path = unix_path(address)
        self._timeout = timeout
        self._deadline = None if timeout is None else monotonic() + timeout
        self._exits = exits

    @property
    def seconds_left(self) -> float | None:
        """Return how many seconds are left, or None for any number."""
        return None if self._deadline is None else max(0.0, self._deadline - monotonic())

    def connect(self) -> WorkerSocket | None:
        """Connect, and return the worker; None if this has to be called again after `PAUSE`.

        Raises WorkerCrashed (category initialization).
        """
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connected:
                connected.setblocking(False)
                connected.connect(self._path)
                return WorkerSocket(self._address, connected, self._exits)
        except BlockingIOError:
            if self.seconds_left != 0.0:
                return None
            raise not_connected(self._address, f"the server did not accept it within {self._timeout:g} s") from None
        except OSError as error:
            raise not_connected(self._address, _reason(error, self._path)) from error


def _reason(error: OSError, path: str) -> str:
    """Return why nothing could be connected to `path`, and what to do."""
    start = "start a server there: dspex-bridge serve --listen unix:PATH"
    if error.errno == errno.ENOENT:
        return f"there is no such socket; {start}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied; the server and this process must run as the same user"
    if error.errno == errno.EPROTOTYPE:
        return "it is a socket of another kind"
    if error.errno == errno.ECONNREFUSED:
        with contextlib.suppress(OSError):
            mode = os.stat(path).st_mode
            if stat.S_ISDIR(mode):
                return "it is a directory; name the socket in it"
            if not stat.S_ISSOCK(mode):
                return "it is a file, not a socket; name the socket of a server"
        return f"nobody listens there anymore; {start}"
    return error.strerror or str(error)


def not_connected(address: str, reason: str, **details: Any) -> errors.WorkerCrashed:
    """Return the error for a connection that could not be used."""
    error = errors.WorkerCrashed(f"cannot connect to {errors.readable(address)}: {reason}", **details)
    error.category = "initialization"
    return error


class WorkerSocket(Worker):
    """A worker at the other end of a connection, which is the end of the worker when it ends.

    connected: its socket, which is duplicated. exits: of the template, if this host has started it. Raises OSError if
    there are no descriptors left.
    """

    input_closed = output_closed = "the worker closed the connection"
    killed = "the connection was closed"
    _process_fd = -1  # of the worker's process, if this host has started its template

    def __init__(self, address: str, connected: socket.socket, exits: Exits | None = None) -> None:
        self._address = address
        self._exits = exits
        self._exit: Exit | None = None
        self._waits_for_exit = False
        self._is_watched = True
        self._lock = threading.RLock()  # reentrant, because signal handlers may kill
        self._socket = connected.dup()
        try:
            self.output_fd = above_stderr(self._socket.detach())
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self.output_fd)
            self.input_fd = above_stderr(os.dup(self.output_fd))
            # Loops watch this and not only the socket: uvloop does not watch a descriptor any longer after an error,
            # such as ECONNRESET, although there may be frames to read before it.
            self._hangup = select.epoll()
            self.exit_fd = self._hangup.fileno()
            self._hangup.register(self.output_fd, select.EPOLLRDHUP)
        except BaseException:
            self.close_all()
            raise
        super().__init__()

    @property
    def name(self) -> str:
        """Return the address, and the process id if it is known."""
        return self._address if self.pid is None else f"{self._address} {super().name}"

    def identify(self, hello: Any) -> None:
        """Take the process id from the worker's first reply."""
        pid = hello.get("pid") if isinstance(hello, dict) else None
        if type(pid) is int and pid > 0:
            self.pid = pid
            if self._exits is not None:
                with contextlib.suppress(OSError):  # it has just ended
                    self._process_fd = above_stderr(os.pidfd_open(pid))
                self._waits_for_exit = True
                self._exits(pid, self._note_exit)

    def fail_start(self, error: errors.BridgeError | OSError) -> None:
        """Raise WorkerCrashed (category initialization) unless `error` is the worker's own, such as Overloaded."""
        if isinstance(error, errors.DeadlineExceeded):
            reason = f"{errors.text_of(error)}; is it a server of workers? dspex-bridge serve --listen unix:PATH"
        elif isinstance(error, errors.WorkerCrashed | errors.InvalidFrame):
            reason = f"{errors.text_of(error)}; the server's log has the reason if it is a server of workers"
        elif isinstance(error, OSError):
            reason = errors.text_of(error)
        else:
            return
        raise not_connected(self._address, reason, **self.crash_details()) from error

    def kill(self) -> None:
        """Close the connection at once, and kill the worker if this host has started its template.

        Another worker may go on with open calls for its grace period.
        """
        with self._lock:
            if self._process_fd >= 0:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(self._process_fd, signal.SIGKILL)
            self._shut_down(socket.SHUT_RDWR)
            if not self._is_watched:
                self._waits_for_exit = False
                self._watch()

    def reap(self) -> bool:
        """Note how the process ended, as far as that is known. Return False if the template will report it soon."""
        with self._lock:
            if self._waits_for_exit and self._is_watched:
                self._hangup.unregister(self.output_fd)
                self._is_watched = False
                return False
            self.exit_status = None if self._exit is None else self._exit.status
            return super().reap()

    def end_without_threads(self) -> None:
        """Close the connection while the interpreter is ending."""
        self._shut_down(socket.SHUT_RDWR)

    def describe_end(self) -> str:
        """Return how the process ended if that is known, otherwise that the connection has."""
        return self.output_closed if self.exit_status is None else end_in_words(self.exit_status)

    def crash_details(self) -> dict[str, Any]:
        """Return `exit_status` and `stderr` if the template has reported how the process ended."""
        if self._exit is None:
            return {}
        details: dict[str, Any] = {"exit_status": self._exit.status}
        return {**details, "stderr": self._exit.stderr} if self._exit.stderr else details

    def close(self, which: str) -> None:
        """Close a descriptor of this process; the worker notices the end of the stream if it is "input_fd"."""
        with self._lock:
            if which == "input_fd" and self.is_own:  # in a fork it would end the connection of the parent
                self._shut_down(socket.SHUT_WR)
            elif which == "output_fd":
                self._socket.detach()
            elif which == "exit_fd" and self.exit_fd >= 0:
                self.exit_fd = -1
                self._hangup.close()
                which = "_process_fd"
            super().close(which)

    def disown(self) -> None:
        """Close the descriptors in a fork of this process, without an end of the connection."""
        self._lock = threading.RLock()  # another thread may have held the old one
        super().disown()

    def _note_exit(self, exit: Exit | None) -> None:
        with self._lock:
            self._waits_for_exit = False
            self._exit = exit
            if exit is not None:  # a child of the worker may hold the other end open
                self._shut_down(socket.SHUT_RDWR)
            self._watch()

    def _watch(self) -> None:
        if not self._is_watched and self.exit_fd >= 0:
            self._is_watched = True
            self._hangup.register(self.output_fd, select.EPOLLRDHUP)

    def _shut_down(self, how: int) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(how)
