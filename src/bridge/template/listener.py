"""The Unix socket on which a template listens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Iterator

BACKLOG = 1024  # connections that wait to be accepted; the system may allow fewer
ROOT = 0


class ListenFailed(Exception):
    """Raised with what the operator must change if a template cannot listen."""


class Listener:
    """A listening Unix socket, which only this user and root can connect to.

    Makes the folder of `path` (mode 0700) if it is missing, and replaces a socket that nobody listens on. Raises
    ListenFailed if `path` cannot be used. replace: take the place of a socket that another process listens on, in one
    step, so that a connection reaches the one or the other.
    """

    def __init__(self, path: str, replace: bool = False) -> None:
        self.path = path
        self._folder = os.path.dirname(path) or "."
        try:
            os.makedirs(self._folder, mode=0o700, exist_ok=True)
            with _locked(self._folder):
                _make_room(path, replace)
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    self._bind(replace)
                except BaseException:
                    self._socket.close()
                    raise
        except (FileExistsError, NotADirectoryError) as error:
            raise ListenFailed(f"{path}: {self._folder} is not a folder") from error
        except OSError as error:
            raise ListenFailed(f"{path}: {error.strerror or error}") from error

    def _bind(self, replace: bool) -> None:
        """Bind and listen. A socket that is to take the place of another one has a name of its own until then."""
        name = os.path.join(self._folder, f".{os.getpid()}") if replace else self.path
        if replace:
            _remove(name)  # of a process that had the same id, and was killed
        umask = os.umask(0o177)  # the socket must not have another mode even for a moment
        try:
            self._socket.bind(name)
        finally:
            os.umask(umask)
        try:
            self._identity: tuple[int, int] | None = _identity(os.lstat(name))
            self._socket.listen(BACKLOG)
            self._socket.setblocking(False)
            if replace:
                os.rename(name, self.path)
        except BaseException:
            _remove(name)
            raise

    def fileno(self) -> int:
        """Return the descriptor, -1 after `close`."""
        return self._socket.fileno()

    def accept(self) -> socket.socket | None:
        """Return the next connection; None if none waits. Raises OSError if the system has no descriptor left."""
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        return connection

    def hide(self) -> None:
        """Remove the socket file, unless another process has replaced it. Connections made so far can be accepted."""
        identity, self._identity = self._identity, None  # which another file may get when the socket is closed
        if identity is None:
            return
        with contextlib.suppress(OSError), _locked(self._folder):
            if _identity(os.lstat(self.path)) == identity:
                os.unlink(self.path)

    def close(self) -> None:
        """Stop listening, and remove the socket file as `hide` does."""
        self.hide()
        self._socket.close()

    def forget(self) -> None:
        """Close the descriptor only: for the child of a fork."""
        self._socket.close()


def is_trusted(connection: socket.socket) -> bool:
    """Return whether the process that has connected belongs to this user or to root."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the mode of the socket file decides
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return uid in (os.geteuid(), ROOT)


def _make_room(path: str, replace: bool) -> None:
    """Remove a socket that nobody listens on. Raises ListenFailed if there is anything else at `path`; with `replace`,
    if there is anything but a socket."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a socket"
        raise ListenFailed(f"{path} exists and is {kind}")
    if replace:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full
    raise ListenFailed(f"{path}: another process listens there (--replace takes its place)")


@contextlib.contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Exclude other templates, so that two that start at the same time do not both replace a socket."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove(name: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
