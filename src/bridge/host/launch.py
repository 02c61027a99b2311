"""Start a worker process: its command line and environment, its pipes, its latest output, and how it ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from bridge import errors
from bridge.host.worker import STDERR_FD, Worker, above_stderr, end_in_words
from bridge.options import DEFAULT_MAX_FRAME, DEFAULT_MAX_VALUES
from bridge.security.redaction import redact_in

STDERR_BYTES = 8192  # how much of the worker's latest output is kept for crash reports
STDERR_LINES = 20  # how many lines of that a report quotes
STDERR_CHUNK = 4096  # bytes that a pipe accepts at once if poll(2) reports that it accepts some


def launch(
    adapter: str = "dspy",
    python: str = sys.executable,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    max_frame: int = DEFAULT_MAX_FRAME,
    max_values: int = DEFAULT_MAX_VALUES,
    command: Sequence[str] = ("worker",),
    role: str = "worker",
) -> WorkerProcess:
    """Start a worker. The parameters are those of `Client.start`.

    command: what `python -m bridge` is to do, if that is not to be a worker; role: what errors call it.
    Raises TypeError and ValueError for invalid options, and WorkerCrashed (category
    initialization) if the program cannot be started.
    """
    check_process(adapter, python, flags, env)
    words = [python, "-P", "-m", "bridge", *command, "--adapter", adapter]
    words += ["--max-frame", str(max_frame), "--max-values", str(max_values), *flags]
    # The worker's stderr is a pipe, but its output is passed on to this process's stderr, which may be a terminal.
    defaults = {"BRIDGE_LOG_FORMAT": "text"} if os.isatty(STDERR_FD) else {}
    try:
        return WorkerProcess(words, {**defaults, **os.environ, **(env or {})}, role)
    except OSError as error:
        raise not_started(role, f"{python}: {error.strerror}") from error


def check_process(adapter: str, python: str, flags: Sequence[str], env: Mapping[str, str] | None) -> None:
    """Raise TypeError for options of `Client.start` that are of another type, ValueError for those that no process can
    be started with."""
    if not isinstance(adapter, str):
        raise TypeError(f"adapter must be a string, not {adapter!r}")
    if not isinstance(python, str | os.PathLike):
        raise TypeError(f"python must be the path of an interpreter, not {python!r}")
    if isinstance(flags, str) or not isinstance(flags, Sequence) or not all(isinstance(flag, str) for flag in flags):
        raise TypeError(f'flags must be a list of strings, like ["--threads", "8"], not {flags!r}')
    if env is not None and not isinstance(env, Mapping):
        raise TypeError(f"env must be a map of strings, not {type(env).__name__}")
    for name, value in (env or {}).items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"env[{name!r}] must be a string, not {type(value).__name__}")
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"env[{name!r}] cannot be a variable: a name is not empty and has no =, nothing has a NUL")
    if any("\0" in text for text in (adapter, str(python), *flags)):
        raise ValueError("adapter, python and flags must not contain a NUL")


def not_started(role: str, reason: str, **details: Any) -> errors.WorkerCrashed:
    """Return the error for a worker, or another process with this role, that did not start."""
    error = errors.WorkerCrashed(f"the {role} did not start: {reason}", **details)
    error.category = "initialization"
    return error


class WorkerProcess(Worker):
    """A worker that this process has started: its pipes, its latest output and its exit status.

    Raises OSError if it cannot be started.
    """

    input_closed = "the worker has closed its stdin"
    output_closed = "the worker has closed its stdout"
    killed = "it was ended"
    pid: int

    def __init__(self, command: Sequence[str], env: Mapping[str, str], role: str = "worker") -> None:
        theirs: list[int] = []
        try:
            for own, is_written in (("input_fd", True), ("output_fd", False), ("stderr_fd", False)):
                ends = _pipe()
                setattr(self, own, ends[is_written])
                theirs.append(ends[not is_written])
                os.set_blocking(ends[is_written], False)
            self._process = subprocess.Popen(
                command,
                stdin=theirs[0],
                stdout=theirs[1],
                stderr=theirs[2],
                env=env,
                start_new_session=True,
            )
            try:
                self.exit_fd = os.pidfd_open(self._process.pid)
            except BaseException:
                self._process.kill()
                self._process.wait()
                raise
        except BaseException:
            self.close_all()
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        self._role = role
        self.pid = self._process.pid
        self._latest_output = b""
        self._is_reaped = False
        self._lock = threading.Lock()
        super().__init__()

    def fail_start(self, error: errors.BridgeError | OSError) -> None:
        """Raise WorkerCrashed (category initialization), with the last lines of the worker's output."""
        details = error.details if isinstance(error, errors.BridgeError) else {}
        raise not_started(self._role, errors.text_of(error), **self.crash_details() | details) from error

    def kill(self) -> None:
        """Kill the process and its children, unless it has ended."""
        with self._lock:
            if not self._is_reaped:
                self._kill_group()

    def wait(self) -> None:
        """Wait until the process has ended, without reaping it."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def reap(self) -> bool:
        """Kill the children of the process, which has ended, and set `exit_status`."""
        with contextlib.suppress(ChildProcessError):  # reaped by a signal handler of the application
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                # The process id cannot belong to another process before this one is reaped.
                self._kill_group()
                self._is_reaped = True
        self._is_reaped = True
        self.exit_status = self._process.wait()
        return super().reap()

    def end_without_threads(self) -> None:
        """Kill the process and its children, and set `exit_status`, while the interpreter is ending.

        The other threads of this process have stopped by then, perhaps while holding the lock.
        """
        if self.exit_status is None:
            if not self._is_reaped:
                self._kill_group()
            self.exit_status = self._process.wait()

    def describe_end(self) -> str:
        """Return how the process ended, in words."""
        return (
            f"the {self._role} is running" if self.exit_status is None else end_in_words(self.exit_status, self._role)
        )

    def crash_details(self) -> dict[str, Any]:
        """Return `exit_status`, and as `stderr` the last lines of the worker's output, without secrets."""
        details: dict[str, Any] = {"exit_status": self.exit_status}
        if last_lines := self._last_lines():
            details["stderr"] = redact_in(last_lines)
        return details

    def disown(self) -> None:
        """Close the descriptors in a fork of this process, where the worker is not a child."""
        super().disown()
        self._process.returncode = 0  # so that the destructor of Popen neither waits nor warns

    def pass_on_stderr(self) -> bool:
        """Copy some of what the worker has written to stderr to this process's stderr, and record its latest bytes.

        Return False at the end of the stream. Raises BlockingIOError if there is nothing to read, or, as long as the
        worker runs, if this process's stderr accepts nothing at the moment.
        """
        accepts = self._stderr_accepts()
        if not accepts and not self._is_reaped:
            raise BlockingIOError
        chunk = os.read(self.stderr_fd, STDERR_CHUNK)
        self._latest_output = (self._latest_output + chunk)[-STDERR_BYTES:]
        if accepts:
            with contextlib.suppress(OSError):  # it is closed, or nobody reads it
                os.write(STDERR_FD, chunk)
        return bool(chunk)

    @staticmethod
    def _stderr_accepts() -> bool:
        poll = select.poll()
        poll.register(STDERR_FD, select.POLLOUT)
        return bool(poll.poll(0))

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _last_lines(self) -> str:
        lines = self._latest_output.decode("utf-8", "replace").splitlines()
        if len(self._latest_output) == STDERR_BYTES and len(lines) > 1:
            del lines[0]  # its beginning is missing
        return "\n".join(lines[-STDERR_LINES:])


def _pipe() -> tuple[int, int]:
    """Return the ends of a new pipe, neither of them 0, 1 or 2."""
    read_fd, write_fd = os.pipe()
    return above_stderr(read_fd), above_stderr(write_fd)
