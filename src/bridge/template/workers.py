"""The workers of a template: how they start, what they write to stderr, and how they end."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from bridge.adapter import Adapter
from bridge.options import Options, flags
from bridge.security.redaction import redact_in
from bridge.telemetry import logs
from bridge.template import signals
from bridge.worker import main, process

STDERR_BYTES = 8192  # how much of a worker's latest output is kept for the report of its end
STDERR_LINES = 20  # how many lines of that the report has
LONGEST_LINE = 1 << 16  # bytes of an unfinished line that wait for the rest of it
STDERR_CHUNK = 1 << 16
LAST_OUTPUT_SECONDS = 0.3  # how long the report of a worker's end waits for what the worker has written


class Child:
    """A worker process and the pipe from its stderr. status: as os.waitpid() returns it; None while it runs."""

    def __init__(self, pid: int, stderr: int) -> None:
        self.pid = pid
        self.stderr = stderr
        self.status: int | None = None
        self.report_at = 0.0  # time.monotonic()
        self._latest = b""
        self._unfinished = b""

    def pass_on_stderr(self) -> bool:
        """Write the finished lines of what the worker has written to this process's stderr. Return False at the end."""
        try:
            chunk = os.read(self.stderr, STDERR_CHUNK)
        except BlockingIOError:
            return True
        self._latest = (self._latest + chunk)[-STDERR_BYTES:]
        text = self._unfinished + chunk
        length = text.rfind(b"\n") + 1 if len(text) <= LONGEST_LINE else len(text)
        self._unfinished = text[length:]
        _write_to_stderr(text[:length])
        return bool(chunk)

    def close_stderr(self) -> None:
        """Stop reading what the worker has written, and pass on the beginning of a line that it has not finished."""
        if self._unfinished:
            _write_to_stderr(self._unfinished + b"\n")
            self._unfinished = b""
        os.close(self.stderr)
        self.stderr = -1

    def ended(self, status: int) -> None:
        """Note the end of the process."""
        self.status = status
        self.report_at = time.monotonic() + LAST_OUTPUT_SECONDS

    def report(self) -> dict[str, Any]:
        """Return the message for the host about the end of the worker."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        lines = self._latest.decode("utf-8", "replace").splitlines()
        if len(self._latest) == STDERR_BYTES and len(lines) > 1:
            del lines[0]  # its beginning is missing
        return {
            "type": "worker_exited",
            "pid": self.pid,
            "exit_status": code if code >= 0 else None,
            "signal": _signal_name(-code) if code < 0 else None,
            "stderr": redact_in("\n".join(lines[-STDERR_LINES:])),
        }


def fork(adapter: Adapter, options: Options, connection: socket.socket, release: Callable[[], None]) -> Child:
    """Fork a worker for `connection`. Raises OSError if the system has no process or descriptor left.

    release(): called in the child, closes what belongs to the template.
    """
    own, others = os.pipe()
    try:
        with signals.blocked():  # at first the child has the handlers and the wake-up descriptor of the template
            pid = os.fork()
            if pid == 0:
                _become_worker(adapter, options, connection, release, own, others)
    except BaseException:
        os.close(own)
        raise
    finally:
        os.close(others)
    os.set_blocking(own, False)
    return Child(pid, own)


def spawn(adapter: str, options: Options, connection: socket.socket) -> Child:
    """Start a worker for `connection` as a new process. Raises OSError. adapter: its name on the command line."""
    own, others = os.pipe()
    fd = connection.fileno()
    command = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", adapter, *flags(options)]
    environment = {name: value for name, value in os.environ.items() if name != process.MARK}
    try:
        started = subprocess.Popen(
            [*command, "--fds", f"{fd},{fd}", "--detached"],
            stdin=subprocess.DEVNULL,
            stdout=others,
            stderr=others,
            pass_fds=[fd],
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        os.close(own)
        raise
    finally:
        os.close(others)
    started.returncode = 0  # the template reaps it; this keeps the destructor from waiting and warning
    os.set_blocking(own, False)
    return Child(started.pid, own)


def reap(children: dict[int, Child]) -> Iterable[Child]:
    """Note the end of each process that has ended, and return those of `children` among them."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        child = children.get(pid)
        if child is not None:  # a process without parent becomes a child of the first process of a container
            child.ended(status)
            yield child


def _become_worker(
    adapter: Adapter,
    options: Options,
    connection: socket.socket,
    release: Callable[[], None],
    own: int,
    others: int,
) -> NoReturn:
    """Turn the child of a fork into a worker. Nothing that belongs to the template is used or run from here on."""
    try:
        atexit._clear()  # the hooks that are registered so far belong to the template
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process.prepare_signals()  # from here on signals arrive
        release()
        os.setsid()
        os.close(own)
        os.dup2(others, 2)
        os.dup2(others, 1)
        os.close(others)
        _reseed()
        fd = connection.detach()
        main.run(lambda: adapter, options, (fd, fd), parent=0)
    except BaseException as error:
        logs.report("the worker failed", error=error)
    finally:  # the template's code must not continue here, whatever happens
        os._exit(process.INTERNAL_ERROR)


def _reseed() -> None:
    """Give this process its own random numbers: Python reseeds only `random` after a fork."""
    random = sys.modules.get("numpy.random")  # which numpy loads when it is first used
    if random is not None:
        random.seed()


def _write_to_stderr(data: bytes) -> None:
    with contextlib.suppress(OSError):  # it is closed, or nobody reads it
        while data:
            data = data[os.write(2, data) :]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
