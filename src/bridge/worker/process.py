"""The worker as a process: its descriptors, its signals, its end."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from bridge import _watch
from bridge._framing import set_pipe_size

# Exit statuses. 0 is also: end of the stream, shutdown, SIGTERM.
OK, USAGE, PROTOCOL_ERROR, INTERNAL_ERROR = 0, 2, 65, 70

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
    private = tuple(os.dup(fd) for fd in (read_fd, write_fd))  # close-on-exec
    for fd in {read_fd, write_fd} - {0, 1, 2}:
        os.close(fd)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for fd in private:
        set_pipe_size(fd)
    return private[0], private[1]


def watch_host(read_fd: int, write_fd: int, parent: int, grace: float) -> None:
    """End with the host, `grace` seconds after it at the latest.

    parent: os.getppid() as it was when the process started. SIGTERM starts the same countdown.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    _watch.start(read_fd, write_fd, wake_read, parent, int(grace * 1000))


def on_sigterm(stop: Callable[[], None]) -> None:
    """Call `stop` on SIGTERM; SIGINT is the host's business."""
    signal.signal(signal.SIGTERM, lambda *_: stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave(status: int) -> NoReturn:
    """End the process now: exit hooks, children, then without waiting for any thread."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # there is no public way
        sys.stderr.flush()
    _watch.kill_children()
    os._exit(status)
