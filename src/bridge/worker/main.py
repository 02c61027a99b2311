"""The life of a worker process: one dispatcher that answers the frames of one pair of descriptors."""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from bridge import errors
from bridge._framing import Reader, Writer, serve
from bridge.adapter import Adapter, AdapterFailed
from bridge.options import Options
from bridge.security.redaction import redact
from bridge.telemetry import logs
from bridge.version import __version__
from bridge.worker import call_log, limits, process, watchdog
from bridge.worker.dispatch import Dispatcher


def run(load_adapter: Callable[[], Adapter], options: Options, fds: tuple[int, int], parent: int) -> NoReturn:
    """Serve until the host is gone or asks the worker to end, then end the process.

    load_adapter(): called once what it prints cannot reach the protocol's descriptors any more. fds: the descriptors to
    read from and to write to. parent: os.getppid() at the start of the process; 0 if its end does not matter.
    """
    read_fd, write_fd = process.take_descriptors(*fds)
    process.start_companion()
    process.set_environment()
    faulthandler.enable()
    process.watch_host(read_fd, write_fd, parent, options.grace)
    logs.log_when_needed(options.log_level)
    try:
        logs.info(f"dspex-bridge {__version__} starts with the process {os.getpid()}")
        call_log.follow_level()
        limits.apply(options)  # after the companion has started, which has no limits
        status = _serve(Dispatcher(load_adapter(), options), read_fd, write_fd, options)
    except (AdapterFailed, errors.StoreFailed, limits.LimitFailed) as error:
        _refuse_to_start(error, options.log_level)
        status = process.USAGE
    except BaseException as error:
        limits.lift()
        logs.report("the worker failed", error=error)
        status = process.INTERNAL_ERROR
    process.run_hooks_and_end(status)


def _refuse_to_start(error: Exception, log_level: str) -> None:
    """Print in one line what the operator must change, at every log level; at DEBUG, log the traceback too."""
    if log_level == "DEBUG":
        logs.report("the worker does not start", error=error)
    line = " ".join(redact(str(error)).splitlines())
    print(f"dspex-bridge worker: error: {line}", file=sys.stderr)


def _serve(dispatcher: Dispatcher, read_fd: int, write_fd: int, options: Options) -> int:
    """Serve until the end of the stream, and return the exit status."""
    reader, writer = Reader(read_fd, options.max_frame), Writer(write_fd)
    path = dispatcher.path

    reason = "the host asked for it"

    def stop() -> None:
        nonlocal reason
        reason, path.stopping = "SIGTERM", True

    process.on_sigterm(stop)
    logs.info(f"ready, with the adapter {dispatcher.worker.adapter.name}")
    os.register_at_fork(after_in_child=lambda: logs.forward(None, dispatcher.worker))
    try:
        error = serve(
            reader,
            writer,
            path.answer,
            writer.flush,
            path.refuse,
            stopping=lambda: path.stopping,
            warm_up=lambda: _start(dispatcher),
        )
    except (BrokenPipeError, ConnectionResetError):
        logs.info("the worker ends: the host no longer reads its replies")
        return process.OK
    if error is None:
        if not path.stopping:
            reason = "the host has closed the pipe"
        logs.info(f"the worker ends: {reason}; {len(dispatcher.calls.open)} open calls")
    dispatcher.stop_calls()
    dispatcher.close_store()
    if error is None:
        return process.OK
    logs.report(f"the stream broke: {error}")
    return process.PROTOCOL_ERROR


def _start(dispatcher: Dispatcher) -> None:
    """Set up what the worker needs, except for its first reply."""
    logs.log_to_stderr(dispatcher.worker.options.log_level)
    call_log.follow_level()
    with limits.lifted():
        if dispatcher.worker.options.stuck_after:
            watchdog.start(dispatcher.worker)
        dispatcher.start()
