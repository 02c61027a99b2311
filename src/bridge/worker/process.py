"""The process of a worker: its descriptors, its signals and its end."""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

import bridge._watch as _watch
import bridge.worker._companion as _companion  # not `from bridge`: then an error names the missing module
from bridge._framing import set_buffer_size
from bridge.telemetry.logs import RedactedStream

# Exit statuses. OK is also that of the end of the stream, of shutdown and of SIGTERM.
OK, USAGE, PROTOCOL_ERROR, INTERNAL_ERROR, STUCK = 0, 2, 65, 70, 75

# Signals that handlers and libraries rely on, and that the host may have set to be ignored.
RESET = (signal.SIGCHLD, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR2)

MARK = "DSPEX_BRIDGE_WORKER"  # an environment variable by which the companion finds the children of the worker

FIRST_PRIVATE = 3  # the lowest descriptor that is not stdin, stdout or stderr

# A pool of workers must not start thousands of BLAS threads. LiteLLM fetches a price list from the network at its first
# call unless the last variable is set.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def set_environment() -> None:
    """Set environment variables for libraries that a handler may load, unless the operator has set them."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def take_descriptors(read_fd: int, write_fd: int) -> tuple[int, int]:
    """Return duplicates of the protocol's descriptors that neither print and printf nor child processes can reach.

    Must run before any code of an adapter. Afterwards 0 is /dev/null and 1 is stderr. The originals are closed unless
    they are 0 to 2.
    """
    _open_closed_ones()
    private = tuple(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE) for fd in (read_fd, write_fd))
    for fd in {read_fd, write_fd} - {0, 1, 2}:
        os.close(fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if not isinstance(sys.stderr, RedactedStream):
        sys.stderr = RedactedStream(sys.stderr)
    sys.stdout = sys.stderr
    for fd in private:
        set_buffer_size(fd)
    return private[0], private[1]


def _open_closed_ones() -> None:
    """Open those of the descriptors 0 to 2 that are closed, so that no other file gets their numbers."""
    for fd in range(FIRST_PRIVATE):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)


def watch_host(read_fd: int, write_fd: int, parent: int, grace: float) -> None:
    """End this process at the latest `grace` seconds after the end of the host, or after SIGTERM.

    parent: os.getppid() as it was when the process started; 0 if the end of that process does not matter.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for fd in (read_fd, write_fd, wake_write):
        _watch.guard(fd)
    os.register_at_fork(after_in_child=_reset_signals)
    _watch.start(read_fd, write_fd, wake_read, parent, int(grace * 1000))


def start_companion() -> None:
    """Make this process the leader of a process group, and start the companion, which outlives this process."""
    started = _start_companion()
    if started is not None:
        pid, control = started
        _watch.spare(pid)
        _watch.guard(control)


def start_template_companion() -> int | None:
    """Start the companion of a process that forks workers. Return the descriptor to close in them, if there is one."""
    started = _start_companion()
    return None if started is None else started[1]


def _start_companion() -> tuple[int, int] | None:
    leads = _watch.lead_group()
    value = f"{os.getpid()}-{os.urandom(8).hex()}"
    os.environ[MARK] = value
    try:
        return _companion.start(leads, f"{MARK}={value}".encode())
    except OSError as error:
        print(f"{error}: children may outlive this process", file=sys.stderr)
        return None


def prepare_signals() -> None:
    """Set the signal handlers of a worker that has no calls yet: SIGTERM ends it at once, SIGINT and SIGHUP do nothing,
    and SIGUSR1 writes the stacks of all threads to stderr. Signals that the host blocks or ignores are reset."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background process may write to its terminal
    signal.signal(signal.SIGTERM, lambda *_: os._exit(OK))
    signal.signal(signal.SIGHUP, lambda *_: None)  # not SIG_IGN: children would inherit it
    faulthandler.register(signal.SIGUSR1, file=2)
    for number in RESET:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _reset_signals() -> None:
    """Reset the signals in the child of a fork: SIGTERM and SIGHUP end it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def end_fork(error: BaseException | None) -> NoReturn:
    """End the child of a fork whose handler has returned or raised, with the exit status of a Python process."""
    status = 0 if error is None else 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        import traceback

        with contextlib.suppress(BaseException):  # raised by the text of the exception
            traceback.print_exception(error)
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(status & 0xFF)


def on_sigterm(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM instead of ending at once."""
    signal.signal(signal.SIGTERM, lambda *_: stop())


def end_at_once(status: int) -> NoReturn:
    """End the process and its children without exit hooks, which a hanging thread may block."""
    _end(status)


def run_hooks_and_end(status: int) -> NoReturn:
    """Run the exit hooks, then end the process and its children without waiting for any thread."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # there is no public function for it
        sys.stderr.flush()
    _end(status)


def _end(status: int) -> NoReturn:
    _watch.kill_children()
    _companion.finish()
    os._exit(status)
