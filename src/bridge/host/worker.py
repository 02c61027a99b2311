"""A worker as its host sees it: descriptors to talk to it, and its end. How a host gets one is in other modules."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
from typing import Any, ClassVar
from weakref import WeakSet

from bridge import errors

STDERR_FD = 2


class Worker:
    """A worker at the other end of some descriptors. A subclass says what they are, and how its end is noticed.

    input_fd, output_fd: to write to the worker and to read from it. stderr_fd: what it writes to stderr, or -1.
    exit_fd: readable from the end of the worker on. None of them blocks. The code that uses one closes it with `close`.
    pid: its process id, or None if that is not known. exit_status: negative for a signal; None if it is not known.
    has_ended: whether it has been reaped. is_own: False in a fork of the process that this object belongs to.
    """

    # What happened, in words: the worker closed one of its descriptors; this process ended it.
    input_closed: ClassVar[str]
    output_closed: ClassVar[str]
    killed: ClassVar[str]

    pid: int | None = None
    exit_status: int | None = None
    has_ended = False
    is_own = True
    input_fd = output_fd = stderr_fd = exit_fd = -1

    def __init__(self) -> None:
        self.host_pid = os.getpid()
        _workers.add(self)

    @property
    def name(self) -> str:
        """Return what a person calls this worker."""
        return f"pid={self.pid}"

    @property
    def is_usable(self) -> bool:
        """Return whether this process, which is neither a fork nor ending, may use the worker."""
        return self.is_own and not sys.is_finalizing()

    def check_own(self) -> None:
        """Raise RuntimeError in a fork of the process that this object belongs to."""
        if not self.is_own:
            raise RuntimeError(
                f"this Client belongs to process {self.host_pid} and cannot be used in its fork"
                f" {os.getpid()}; start another Client there"
            )

    def identify(self, hello: Any) -> None:
        """Take from the worker's first reply what is not known yet."""

    def fail_start(self, error: errors.BridgeError | OSError) -> None:
        """Raise the error of a start that has failed with `error`, unless it is `error` itself."""

    def kill(self) -> None:
        """End the worker at once, unless it has ended. May be called in any thread, and again."""
        raise NotImplementedError

    def wait(self) -> None:
        """Wait until the end of a worker that was killed can be noticed."""

    def reap(self) -> bool:
        """Note how the worker, which has ended, did so, and return True.

        Return False if that will be known in a moment: `exit_fd` is readable then, and not before.
        """
        self.has_ended = True
        return True

    def discard(self) -> None:
        """End the worker and close its descriptors, if no loop watches them."""
        self.kill()
        self.wait()
        self.reap()
        self.close_all()

    def end_without_threads(self) -> None:
        """End the worker while the interpreter is ending.

        The other threads of this process have stopped by then, perhaps while holding a lock.
        """
        raise NotImplementedError

    def describe_end(self) -> str:
        """Return how the worker ended, in words."""
        raise NotImplementedError

    def crash_details(self) -> dict[str, Any]:
        """Return what is known of the end of the worker, for the `details` of an error."""
        return {}

    def pass_on_stderr(self) -> bool:
        """Pass on some of what the worker has written to stderr. Return False at the end of the stream.

        Raises BlockingIOError if that is not possible at the moment.
        """
        return False

    def close(self, which: str) -> None:
        """Close a descriptor of this process, for instance "input_fd"."""
        fd = getattr(self, which)
        setattr(self, which, -1)  # first: a fork in between must not close a descriptor that was reused
        if fd >= 0:
            os.close(fd)

    def close_all(self) -> None:
        """Close all descriptors of this process."""
        for which in ("input_fd", "output_fd", "stderr_fd", "exit_fd"):
            with contextlib.suppress(OSError):
                self.close(which)

    def disown(self) -> None:
        """Close the descriptors in a fork of this process, which has no right to the worker."""
        self.is_own = False
        self.close_all()


def above_stderr(fd: int) -> int:
    """Return `fd`, or a duplicate in place of 0, 1 and 2.

    If this process has closed its stderr, code that writes to descriptor 2 must not write to a worker.
    """
    if fd > STDERR_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, STDERR_FD + 1)
    finally:
        os.close(fd)


def end_in_words(status: int, role: str = "worker") -> str:
    """Return how a process with this exit status ended; negative for a signal."""
    if status < 0:
        reason = ", because it has used its CPU time (--max-cpu)" if -status == signal.SIGXCPU else ""
        return f"the {role} was ended by {_signal_name(-status)}{reason}"
    return f"the {role} ended with status {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def number_of(name: str) -> int:
    """Return the number of the signal with a name like SIGKILL or "signal 40"; 0 if it is unknown."""
    try:
        return int(signal.Signals[name])
    except KeyError:
        digits = name.removeprefix("signal ")
        return int(digits) if digits.isdecimal() else 0


_workers: WeakSet[Worker] = WeakSet()


def _after_fork() -> None:
    # A child that holds the descriptors would hide the host's end from the worker.
    for worker in list(_workers):
        worker.disown()


os.register_at_fork(after_in_child=_after_fork)
