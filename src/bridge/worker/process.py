"""The worker as a process: its descriptors, its signals, its end."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from bridge._framing import set_pipe_size
from bridge._watch import kill_children
from bridge._watch import start as start_watch

# Exit statuses. 0 is also: end of the stream, shutdown, SIGTERM.
OK, USAGE, PROTOCOL_ERROR, INTERNAL_ERROR, STUCK = 0, 2, 65, 70, 75

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
    private = tuple(
        fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_PRIVATE) for fd in (read_fd, write_fd)
    )
    for fd in {read_fd, write_fd} - {0, 1, 2}:
        os.close(fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.stdout = sys.stderr
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
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    start_watch(read_fd, write_fd, wake_read, parent, int(grace * 1000))


def before_anything() -> None:
    """Until there is something to drain, SIGTERM just ends; SIGINT is the host's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(OK))


def on_sigterm(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM from now on."""
    signal.signal(signal.SIGTERM, lambda *_: stop())


def end_at_once(status: int) -> NoReturn:
    """End the process and its children without any exit hook, which a thread that hangs may hold
    up."""
    kill_children()
    os._exit(status)


def leave(status: int) -> NoReturn:
    """End the process now: exit hooks, children, then without waiting for any thread."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # there is no public way
        sys.stderr.flush()
    kill_children()
    os._exit(status)
