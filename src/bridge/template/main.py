"""The life of a template: it listens, prepares itself, serves, and ends."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from bridge import errors
from bridge.adapter import Adapter, AdapterFailed
from bridge.options import Options
from bridge.security.redaction import redact
from bridge.telemetry import logs
from bridge.template import signals, warming
from bridge.template.control import Control, ControlFailed
from bridge.template.listener import Listener, ListenFailed
from bridge.template.server import Template
from bridge.template.settings import Settings
from bridge.wire.codec import by_name
from bridge.worker import _companion, limits, process

_log = logging.getLogger("bridge.template")


def run(settings: Settings, load_adapter: Callable[[], Adapter]) -> NoReturn:
    """Serve until SIGTERM or the host's `stop`, and end the process."""
    read_fd, write_fd = process.take_descriptors(0, 1)
    companion_fd = process.start_template_companion()
    process.set_environment()
    listener: Listener | None = None

    def end(*_: object) -> None:  # also in the child of a fork that the adapter may have made
        if listener is not None and os.getpid() == own:
            listener.close()
        os._exit(process.OK)

    own = os.getpid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        logs.log_to_stderr(settings.options.log_level)
        control = _control(settings.control, read_fd, write_fd)
        if not settings.replace:
            with signals.blocked():  # `end` must know of the socket file from its first moment
                listener = Listener(settings.path)
        try:
            with contextlib.nullcontext() if control is None else control.interrupting(end):
                adapter = load_adapter()
                _check_store(settings.options)
                warming.preload(settings.preload)
                warming.warm(adapter, settings.options)
                limits.check(settings.options)
            if listener is None:
                with signals.blocked():
                    listener = Listener(settings.path, replace=True)
            Template(settings, adapter, listener, control, companion_fd).serve()
        finally:
            if listener is not None:
                listener.close()
    except (AdapterFailed, ControlFailed, ListenFailed, errors.StoreFailed, limits.LimitFailed) as error:
        line = " ".join(redact(str(error)).splitlines())
        print(f"dspex-bridge serve: error: {line}", file=sys.stderr)
        _end(process.USAGE)
    except BaseException as error:
        _log.critical("the template failed", exc_info=error)
        _end(process.INTERNAL_ERROR)
    _end(process.OK)


def _control(name: str | None, read_fd: int, write_fd: int) -> Control | None:
    """Return the control pipe in the format `name`; None closes the descriptors."""
    format = by_name(name) if name is not None else None
    if format is None:
        os.close(read_fd)
        os.close(write_fd)
        return None
    return Control(read_fd, write_fd, format)


def _check_store(options: Options) -> None:
    """Raise StoreFailed if the store cannot be opened. Each worker opens it for itself."""
    if options.store is not None:
        from bridge.worker.stores import open_store

        open_store(options.store).close()


def _end(status: int) -> NoReturn:
    with contextlib.suppress(OSError):  # nobody can read it
        sys.stderr.flush()
    _companion.finish()
    os._exit(status)
