"""The limits of a worker process: its memory and its CPU time, by setrlimit(2)."""

from __future__ import annotations

import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bridge._watch as _watch
from bridge.options import Options

HEADROOM = 16 << 20  # bytes that a worker must be able to allocate to answer anything
KILL_AFTER = 2  # seconds of CPU time after SIGXCPU, which a library may block

_max_memory: int | None = None  # bytes; None: without a limit
_stacks = 0  # bytes that do not count
_lifts = 0  # by how many the limit on memory is lifted now
_changing = threading.Lock()


class LimitFailed(Exception):
    """Raised when the process cannot be limited as the operator wants."""


def check(options: Options) -> None:
    """Raise LimitFailed if the system has no such limits as `options` want, or if this process uses too much memory
    already."""
    if options.max_memory is not None:
        _check_memory(options.max_memory)
    if options.max_cpu is not None:
        _check_cpu()


def apply(options: Options) -> None:
    """Limit this process as `options` say. Children that it starts later get the same limits, each for itself.

    Raises LimitFailed as `check` does.
    """
    global _max_memory
    check(options)
    if options.max_memory is not None:
        _max_memory = options.max_memory
        exempt_stacks(0)
    if options.max_cpu is not None:
        _limit_cpu(options.max_cpu)


def exempt_stacks(size: int) -> None:
    """Exempt `size` bytes of stacks from the limit on memory, if there is one.

    A stack is reserved at the start of its thread and hardly used: with the 64 threads of a worker half a gigabyte.
    """
    global _stacks
    with _changing:
        _stacks = size
        _renew()


@contextmanager
def lifted() -> Iterator[None]:
    """Remove the limit on memory inside the `with` statement.

    For what a worker must be able to do when its calls have used up the memory: send their replies, and start threads,
    because Thread.start() waits forever for a thread that has no memory to begin.
    """
    global _lifts
    with _changing:
        _lifts += 1
        _renew()
    try:
        yield
    finally:
        with _changing:
            _lifts -= 1
            _renew()


def lift() -> None:
    """Remove the limit on memory for good: nothing keeps the process from logging why it ends."""
    global _lifts
    with _changing:
        _lifts += 1
        _renew()


def _renew() -> None:
    if _max_memory is not None:
        import resource

        _set(resource.RLIMIT_DATA, resource.RLIM_INFINITY if _lifts else _max_memory + _stacks)


def _check_memory(limit: int) -> None:
    """Raise LimitFailed if RLIMIT_DATA does not limit the private writable memory of a process, or is too low.

    RLIMIT_AS would count what is only reserved, too, which is ten times as much as is used.
    """
    if sys.platform != "linux":
        raise LimitFailed("--max-memory: this system cannot limit the memory of a process")
    used = _data_bytes()
    if used + HEADROOM > limit:
        raise LimitFailed(
            f"--max-memory {limit}: a worker has {used} bytes at its start and needs {HEADROOM} more to answer calls"
        )


def _check_cpu() -> None:
    try:
        from resource import RLIMIT_CPU  # noqa: F401  # only whether it is there
    except ImportError:
        raise LimitFailed("--max-cpu: this system cannot limit the CPU time of a process") from None


def _limit_cpu(seconds: int) -> None:
    import resource

    text = f"dspex-bridge worker: error: it has used its CPU time (--max-cpu {seconds}) and ends\n"
    _watch.explain_cpu_limit(text.encode())
    faulthandler.register(signal.SIGXCPU, file=2, chain=True)  # first the stacks of all threads
    _set(resource.RLIMIT_CPU, seconds, seconds + KILL_AFTER)


def _set(which: int, soft: int, hard: int | None = None) -> None:
    """Set a limit, but never to more than the process is allowed. hard: None leaves it as it is."""
    import resource

    allowed = resource.getrlimit(which)[1]
    hard = allowed if hard is None else _lower(hard, allowed)
    resource.setrlimit(which, (_lower(soft, hard), hard))


def _lower(one: int, other: int) -> int:
    import resource

    return max(one, other) if resource.RLIM_INFINITY in (one, other) else min(one, other)  # infinity is -1


def _data_bytes() -> int:
    """Return what RLIMIT_DATA counts, in bytes."""
    status: dict[str, Any] = {}
    with open("/proc/self/status") as lines:
        for line in lines:
            name, _, status[name] = line.partition(":")
    return int(status["VmData"].split()[0]) * 1024
