"""The worker as a process: its descriptors, its signals, its end."""

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
import bridge.worker._companion as _companion  # not `from bridge`: an error names what is missing
from bridge._framing import set_pipe_size
from bridge.telemetry.logs import RedactedStream

# Exit statuses. 0 is also: end of the stream, shutdown, SIGTERM.
OK, USAGE, PROTOCOL_ERROR, INTERNAL_ERROR, STUCK = 0, 2, 65, 70, 75

# Signals that handlers and libraries rely on, and that a host may have ignored.
RESET = (signal.SIGCHLD, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF, signal.SIGUSR2)

MARK = "DSPEX_BRIDGE_WORKER"  # in the environment of its children, by which they are found

FIRST_PRIVATE = 3  # the lowest descriptor that is not stdin, stdout or stderr

# A pool of workers must not start thousands of BLAS threads; and DSPy and litellm fetch a price
# list from the network at their first call unless told not to.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def set_environment() -> None:
    """Defaults for the libraries that a handler may load, where the operator set none."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def take_descriptors(read_fd: int, write_fd: int) -> tuple[int, int]:
    """Private duplicates of the protocol's descriptors, out of reach of print, printf, children.

    Must run before any code that is not ours: from then on 0 is /dev/null and 1 is stderr. The
    originals are closed where they are not 0 to 2.
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
    sys.stdout = sys.stderr = RedactedStream(sys.stderr)
    for fd in private:
        set_pipe_size(fd)
    return private[0], private[1]


def _open_closed_ones() -> None:
    """A host may start a worker without some of 0 to 2; nothing else may get their numbers."""
    for fd in range(FIRST_PRIVATE):
        try:
            os.fstat(fd)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), fd)


def watch_host(read_fd: int, write_fd: int, parent: int, grace: float) -> None:
    """End with the host, `grace` seconds after it at the latest.

    parent: os.getppid() as it was when the process started. SIGTERM starts the same countdown.
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
    """Have a process group of our own, and beside it the process that outlives this one."""
    leads = _watch.lead_group()
    value = f"{os.getpid()}-{os.urandom(8).hex()}"
    os.environ[MARK] = value
    try:
        pid, control = _companion.start(leads, f"{MARK}={value}".encode())
    except OSError as error:
        print(f"{error}: children may outlive this worker", file=sys.stderr)
        return
    _watch.spare(pid)
    _watch.guard(control)


def before_anything() -> None:
    """Until there is something to drain, SIGTERM just ends; SIGINT is the host's business, SIGHUP
    its terminal's. SIGUSR1 writes the stacks of all threads to stderr. What the host blocks or
    ignores counts no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a terminal's background may write to it
    signal.signal(signal.SIGTERM, lambda *_: os._exit(OK))
    signal.signal(signal.SIGHUP, lambda *_: None)  # no SIG_IGN: children would inherit that
    faulthandler.register(signal.SIGUSR1, file=2)
    for number in RESET:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _reset_signals() -> None:
    """In the child of a fork, have Python know that SIGTERM and SIGHUP end it."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def end_fork(error: BaseException | None) -> NoReturn:
    """End the child of a fork whose handler has returned or raised, as a process of its own."""
    status = 0 if error is None else 1
    if isinstance(error, SystemExit):
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        import traceback

        with contextlib.suppress(BaseException):  # of the exception's own text
            traceback.print_exception(error)
    with contextlib.suppress(Exception):
        sys.stderr.flush()
    os._exit(status & 0xFF)


def on_sigterm(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM from now on."""
    signal.signal(signal.SIGTERM, lambda *_: stop())


def end_at_once(status: int) -> NoReturn:
    """End the process and its children without any exit hook, which a thread that hangs may hold
    up."""
    _end(status)


def leave(status: int) -> NoReturn:
    """End the process now: exit hooks, children, then without waiting for any thread."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # there is no public way
        sys.stderr.flush()
    _end(status)


def _end(status: int) -> NoReturn:
    _watch.kill_children()
    _companion.finish()
    os._exit(status)
