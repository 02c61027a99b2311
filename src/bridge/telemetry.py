"""Logs: to stderr, one JSON object a line where nobody watches, plain lines on a terminal.

Also the one place that knows the secrets of this process, so that no text that leaves it shows one.
The standard library's logging is a fifth of a worker's start: nothing here imports it before the
first frame is answered.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import msgspec

KEPT = 1000  # secrets; the oldest are forgotten
SHORTEST = 4  # characters; hiding shorter ones would blot out words

# Never changed, only replaced: others read it meanwhile.
_secrets: tuple[str, ...] = ()
_changing = threading.Lock()


def keep_secret(value: str) -> None:
    """From now on `conceal` hides `value`, unless it is shorter than `SHORTEST`."""
    global _secrets
    with _changing:
        if len(value) >= SHORTEST and value not in _secrets:
            _secrets = (*_secrets, value)[-KEPT:]


def conceal(text: str) -> str:
    """`text` with every known secret as `***`."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def conceal_in(value: Any) -> Any:
    """The same for all texts inside lists and maps."""
    if isinstance(value, str):
        return conceal(value)
    if isinstance(value, dict):
        return {key: conceal_in(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [conceal_in(entry) for entry in value]
    return value


# What every line says that is logged in a call.
_call: ContextVar[dict[str, Any]] = ContextVar("call", default={})  # noqa: B039  # never changed


def warn(message: str, *, error: BaseException | None = None) -> None:
    """Log a warning of the worker's own."""
    import logging

    logging.getLogger("bridge.worker").warning(message, exc_info=error)


@contextmanager
def logging_call(request_id: Any, traceparent: str | None) -> Iterator[None]:
    """All that is logged meanwhile, on this thread, says whose call it was."""
    fields = {"request_id": request_id, "traceparent": traceparent}
    token = _call.set({name: value for name, value in fields.items() if value is not None})
    try:
        yield
    finally:
        _call.reset(token)


Send = Callable[[dict[str, Any]], None]
_send: Send | None = None


def forward(send: Send | None) -> None:
    """Hand log lines to `send` from now on, as maps; None: write them to stderr."""
    global _send
    _send = send


def log_to_stderr(level: str) -> None:
    """Send this process's logs from `level` up ("DEBUG" to "CRITICAL") to stderr, or to where
    `forward` says."""
    import logging

    class Handler(logging.StreamHandler[Any]):
        def emit(self, record: logging.LogRecord) -> None:
            if _send is None:
                super().emit(record)
                return
            try:
                _send(self._fields(record))
            except Exception:
                super().emit(record)

        def format(self, record: logging.LogRecord) -> str:
            if sys.stderr.isatty():
                return conceal(super().format(record))
            return msgspec.json.encode(self._fields(record)).decode()

        def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
            formatter = logging.Formatter()
            line = {
                "time": formatter.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
                "level": record.levelname,
                "logger": record.name,
                "message": conceal(record.getMessage()),
            }
            line.update(_call.get())
            if record.exc_info:
                line["error"] = conceal(formatter.formatException(record.exc_info))
            return line

    logging.basicConfig(level=level, handlers=[Handler(sys.stderr)], force=True)
