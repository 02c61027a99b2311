"""Prepare a process that forks workers: load and run what they need, then leave only one thread."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from bridge.adapter import Adapter, AdapterFailed, reason_of
from bridge.options import Options
from bridge.wire.codec import FORMATS, Format
from bridge.worker.dispatch import Dispatcher

THREADS = "/proc/self/task"
REHEARSAL_SECONDS = 30.0  # for each request

_log = logging.getLogger("bridge.template")


def warm(adapter: Adapter, options: Options) -> None:
    """Call the adapter's `warm_up`, and call its `rehearse` once for each format.

    Afterwards the garbage collector ignores what has been loaded, so that forked workers share its memory.
    Raises AdapterFailed if one of them raises, or if a request of the rehearsal fails.
    """
    if adapter.warm_up is not None:
        with _named(adapter, "warm_up"):
            adapter.warm_up()
        adapter.warm_up = None  # its effect is inherited by each fork
    for format in FORMATS:
        dispatcher = Dispatcher(adapter, Options(programs=options.programs, threads=1))
        try:
            with _named(adapter, "rehearsal"):
                _rehearse(dispatcher, adapter, format)
        finally:
            dispatcher.close()
    gc.collect()
    gc.freeze()
    _return_free_memory()


def preload(modules: Iterable[str]) -> None:
    """Import the modules that the operator has named. Raises AdapterFailed if one cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except BaseException as error:  # a module may raise anything when it is imported, for instance SystemExit
            raise AdapterFailed(f"--preload {module}: {reason_of(error)}") from error


@contextlib.contextmanager
def _named(adapter: Adapter, step: str) -> Iterator[None]:
    """Raise AdapterFailed, with the name of the adapter and of the step, for any exception in the `with` statement."""
    try:
        yield
    except AdapterFailed:
        raise
    except BaseException as error:  # an adapter may raise anything, for instance SystemExit
        _log.debug("the adapter %r failed", adapter.name, exc_info=error)
        raise AdapterFailed(f"adapter {adapter.name!r}: its {step} failed: {reason_of(error)}") from error


def _rehearse(dispatcher: Dispatcher, adapter: Adapter, format: Format) -> None:
    def call(command: str, args: dict[str, Any] | None = None) -> Any:
        request = format.encode({"id": 1, "command": command, "args": args or {}})
        reply = format.decode(dispatcher.call(request, REHEARSAL_SECONDS))
        if not reply["success"]:
            raise AdapterFailed(f"adapter {adapter.name!r}: {command} of its rehearsal failed: {reply['error']}")
        return reply["result"]

    for command in ("hello", "ping", "describe", "get_stats"):
        call(command)
    if adapter.rehearse is not None:
        adapter.rehearse(call)


def other_threads() -> list[str]:
    """Return the names of the threads of this process besides the calling one."""
    known = {thread.native_id: thread.name for thread in threading.enumerate()}
    own = threading.get_native_id()
    try:
        ids = [int(name) for name in os.listdir(THREADS)]
    except OSError:  # not Linux: only Python's threads are known
        return [name for number, name in known.items() if number != own]
    return [known.get(number) or _name_of(number) for number in ids if number != own]


def may_fork() -> bool:
    """Return whether the platform allows a process to fork after it has loaded libraries."""
    return sys.platform != "darwin"  # its system libraries start threads that do not survive a fork


def _name_of(thread: int) -> str:
    try:
        with open(f"{THREADS}/{thread}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip() or str(thread)
    except OSError:  # it has just ended
        return str(thread)


def _return_free_memory() -> None:
    """Return memory that is free to the system; forks would otherwise copy it when they use it."""
    with contextlib.suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)
