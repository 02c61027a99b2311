"""A worker process as its host sees it: its pipes, what it wrote to stderr, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from weakref import WeakSet

STDERR_BYTES = 8192  # of a worker's last output, from which the last lines are taken
STDERR_LINES = 20
DRAIN_SECONDS = 0.5  # that stderr may take to end after the process, if a child holds it open

STDERR_FD = 2


class WorkerProcess:
    """A process and its three pipes. Raises OSError if it cannot be started.

    input_fd, output_fd: this side's ends of its stdin and stdout; whoever uses one closes it with
    `close`.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        pipes = [_pipe() for _ in range(3)]
        (worker_in, self.input_fd), (self.output_fd, worker_out), (stderr, worker_err) = pipes
        try:
            self._process = subprocess.Popen(
                command,
                stdin=worker_in,
                stdout=worker_out,
                stderr=worker_err,
                env=env,
                start_new_session=True,
            )
        except BaseException:
            for fd in (self.input_fd, self.output_fd, stderr):
                os.close(fd)
            raise
        finally:
            for fd in (worker_in, worker_out, worker_err):
                os.close(fd)
        self.pid = self._process.pid
        self.exit_status: int | None = None
        self.has_ended = threading.Event()
        self._stderr_fd = stderr
        self._last_output = b""
        self._is_reaped = False
        self._lock = threading.Lock()
        self._relay = threading.Thread(target=self._relay_stderr, name="bridge-stderr", daemon=True)
        self._relay.start()
        _processes.add(self)

    def kill(self) -> None:
        """End the process and its children at once, if it has not ended yet."""
        with self._lock:
            if not self._is_reaped:
                self._kill_group()

    def wait(self) -> None:
        """Wait for the end of the process, end its children, and set `exit_status`. To be called
        once; others wait for `has_ended`."""
        with contextlib.suppress(ChildProcessError):  # reaped by a handler of the application
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                # Its number cannot belong to another process before it is reaped.
                self._kill_group()
                self._is_reaped = True
        self._is_reaped = True
        self.exit_status = self._process.wait()
        self._relay.join(DRAIN_SECONDS)
        self.has_ended.set()

    def end_alone(self) -> None:
        """End the process and its children, and set `exit_status`, in a process whose other
        threads have stopped wherever they were."""
        if self.exit_status is None:
            if not self._is_reaped:
                self._kill_group()
            self.exit_status = self._process.wait()

    def last_lines(self) -> str:
        """Return the last lines that the process wrote to stderr."""
        lines = self._last_output.decode("utf-8", "replace").splitlines()
        if len(self._last_output) == STDERR_BYTES and len(lines) > 1:
            del lines[0]  # its beginning is missing
        return "\n".join(lines[-STDERR_LINES:])

    def how_it_ended(self) -> str:
        """Describe the exit status in words."""
        status = self.exit_status
        if status is None:
            return "the worker is running"
        if status >= 0:
            return f"the worker ended with status {status}"
        return f"the worker was ended by {_signal_name(-status)}"

    def close(self, which: str) -> None:
        """Close a descriptor of this process: "input_fd" or "output_fd"."""
        fd = getattr(self, which)
        setattr(self, which, -1)  # first, so that a fork in between never closes somebody else's
        if fd >= 0:
            os.close(fd)

    def forget(self) -> None:
        """Let go of the process in a fork of its host, where it is not a child."""
        for which in ("input_fd", "output_fd", "_stderr_fd"):
            with contextlib.suppress(OSError):
                self.close(which)
        self._process.returncode = 0  # so that its destructor neither waits nor warns

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _relay_stderr(self) -> None:
        """Pass the worker's stderr on to this process's, and remember its end."""
        with contextlib.suppress(OSError):
            while chunk := os.read(self._stderr_fd, 1 << 16):
                self._last_output = (self._last_output + chunk)[-STDERR_BYTES:]
                with contextlib.suppress(OSError):
                    while chunk:
                        chunk = chunk[os.write(STDERR_FD, chunk) :]
        self.close("_stderr_fd")


def _pipe() -> tuple[int, int]:
    """Make a pipe without the numbers 0 to 2: where the host has closed its stderr, what is
    written there must not get into the pipe."""
    low = []
    ends: list[int] = []
    for fd in os.pipe():
        if fd <= STDERR_FD:
            low.append(fd)
            fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STDERR_FD + 1)
        ends.append(fd)
    for fd in low:
        os.close(fd)
    return ends[0], ends[1]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# The process that this code runs in, as clients compare it: they belong to one.
current_pid = os.getpid()
_processes: WeakSet[WorkerProcess] = WeakSet()


def _after_fork() -> None:
    """A child of the host must not hold the pipes: the worker would not see the host's end."""
    global current_pid
    current_pid = os.getpid()
    for process in list(_processes):
        process.forget()


os.register_at_fork(after_in_child=_after_fork)
