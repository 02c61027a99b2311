"""Logs: to stderr, one JSON object a line where nobody watches, plain lines on a terminal.

The standard library's logging is a fifth of a worker's start: nothing here imports it before the
first frame is answered.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from bridge import errors
from bridge.security import redaction
from bridge.security.redaction import redact, redact_in, shorten

if TYPE_CHECKING:
    import logging

    from bridge._dispatch import Context

MOST_LOGGERS = 100  # that have a level of their own by `set_log_level`

_call: ContextVar[Context | None] = ContextVar("call", default=None)


@contextmanager
def logging_call(context: Context) -> Iterator[None]:
    """Have all that is logged meanwhile, on this thread, say whose call it was."""
    token = _call.set(context)
    scope = redaction.session.set(_session_id(context) or redaction.ANY)
    try:
        yield
    finally:
        redaction.session.reset(scope)
        _call.reset(token)


def call_facts(context: Context) -> dict[str, Any]:
    """Return what logs and activities say of a call: request_id, session_id (None where it has
    none, or several), command, traceparent."""
    request = context.request
    return {
        "request_id": request.id,
        "session_id": _session_id(context),
        "command": request.command,
        "traceparent": request.traceparent,
    }


def _session_id(context: Context) -> str | None:
    session_id, sessions = context.session_id, context.sessions
    if session_id is None and sessions and len(sessions) == 1:
        session_id = sessions[0].id
    return session_id


def warn(message: str, *, error: BaseException | None = None) -> None:
    """Log a warning of the worker's own. Does not raise, whatever `error` is."""
    _own_log().warning(message, exc_info=_exc_info(error))


def info(message: str) -> None:
    """Log a step in the worker's life."""
    if _may_be_wanted():
        _own_log().info(message)


def debug(message: str, *args: object) -> None:
    """Log a detail of the worker's own, with `args` put into the message as `logging` does it.
    Costs next to nothing where the logs are not set up, and little where the level is higher."""
    if _may_be_wanted():
        _own_log().debug(message, *args)


def report(message: str, *, error: BaseException | None = None) -> None:
    """Log why the worker ends, whatever the level."""
    _own_log().critical(message, exc_info=_exc_info(error))


def _exc_info(error: BaseException | None) -> Any:
    if error is None:
        return None
    # An exception of a handler's own may have a property of that name, which fails.
    return type(error), error, BaseException.__dict__["__traceback__"].__get__(error)


_deferred: str | None = None


def log_when_needed(level: str) -> None:
    """Do what `log_to_stderr` does when the worker itself first logs something."""
    global _deferred
    _deferred = level


def _may_be_wanted() -> bool:
    """Whether a line below WARNING may go anywhere; what needs no `logging` does not load it."""
    return "logging" in sys.modules or _deferred in ("INFO", "DEBUG")


def _own_log() -> logging.Logger:
    import logging

    if _deferred is not None:
        log_to_stderr(_deferred)
    return logging.getLogger("bridge.worker")


LONGEST_ID = 200  # characters in a line
LONGEST_TEXT = 64 * 1024  # of a message, and of a traceback


def shown(call_id: str | int | None) -> str | int | None:
    """Return the id of a call as logs have it: it may be as long as a frame."""
    if isinstance(call_id, str) and len(call_id) > LONGEST_ID:
        return f"{call_id[:LONGEST_ID]}…"
    if isinstance(call_id, int) and call_id.bit_length() > 64:
        return f"(an integer of {call_id.bit_length()} bits)"
    return call_id


Send = Callable[[dict[str, Any]], None]
_send: Send | None = None
_asker: object = None


def forward(send: Send | None, asker: object) -> None:
    """Hand log lines to `send` from now on, as maps; None: write them to stderr, unless another
    asker has them by now. There is one such place in a process."""
    global _send, _asker
    if send is not None or asker is _asker:
        _send, _asker = send, None if send is None else asker


_levels: dict[str | None, str] = {}  # set at run time, by the logger's name; None is the root


def set_log_level(level: str, logger: str | None = None) -> None:
    """Log from `level` up ("DEBUG" to "CRITICAL"), of that logger and those below it, or of all
    that have no level of their own. From now on, or from `log_to_stderr` on if that is to come.

    Raises ValueError for more names than `MOST_LOGGERS`: loggers are never given back.
    """
    if logger not in _levels and len(_levels) >= MOST_LOGGERS:
        raise ValueError(f"levels are kept of at most {MOST_LOGGERS} loggers")
    _levels[logger] = level
    if "logging" in sys.modules:
        import logging

        logging.getLogger(logger).setLevel(level)


def log_to_stderr(level: str) -> None:
    """Send this process's logs from `level` up ("DEBUG" to "CRITICAL") to stderr, or to where
    `forward` says; warnings of Python too."""
    import logging

    class Handler(logging.StreamHandler[Any]):
        def handle(self, record: logging.LogRecord) -> Any:
            # Not in `emit`: that has the lock of all who log, and `send` may run a host's code.
            send = _send
            if send is not None and (kept := self.filter(record)):
                try:
                    send(_line(kept if isinstance(kept, logging.LogRecord) else record))
                    return True
                except Exception:
                    pass
            return super().handle(record)

        def format(self, record: logging.LogRecord) -> str:
            # A client that passes a worker's stderr on to a terminal says so.
            if sys.stderr.isatty() or os.environ.get("BRIDGE_LOG_FORMAT") == "text":
                record.msg, record.args = _message(record), ()
                if record.exc_info:
                    record.exc_text = _stack(record.exc_info)
                return _readable_part(super().format(record))
            return msgspec.json.encode(_line(record)).decode()

    global _writing, _deferred
    _writing, _deferred = True, None
    stream = sys.stderr.unredacted if isinstance(sys.stderr, RedactedStream) else sys.stderr
    logging.basicConfig(level=level, handlers=[Handler(stream)], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    for logger, chosen in _levels.items():
        logging.getLogger(logger).setLevel(chosen)
    for name in _libraries:
        _take_over(name)


class RedactedStream:
    """A text stream in place of another, for what libraries print: its secrets are redacted."""

    def __init__(self, stream: TextIO) -> None:
        self.unredacted = stream

    def write(self, text: str) -> int:
        """Write `text` to the other stream, redacted."""
        self.unredacted.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unredacted, name)


def take_over_logs(library: str) -> None:
    """Have a library that writes its logs itself write them as all others are written, by the
    levels of all others; only where `log_to_stderr` is called."""
    _libraries.append(library)
    if _writing:
        _take_over(library)


def _thread_failed(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is not SystemExit:  # that is a thread's way to end
        name = raised.thread.name if raised.thread else "a thread"
        warn(f"{name} failed", error=raised.exc_value)


_writing = False
_libraries: list[str] = []


def _take_over(library: str) -> None:
    import logging

    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(_levels.get(library, "NOTSET"))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # of a caller's own arguments
        return f"{errors.shown(record.msg)} (with arguments that have no text)"


def _stack(exc_info: Any) -> str:
    """What was raised and where, or its type alone: `logging` could not even report that the rest
    fails, which the same exception is the context of."""
    import logging

    try:
        return logging.Formatter().formatException(exc_info)
    except BaseException:
        return f"{exc_info[0].__name__} (its traceback cannot be written)"


def _readable_part(text: str) -> str:
    """Return as much of `text` as anybody reads, redacted: searching more takes long."""
    part = shorten(text, LONGEST_TEXT)
    return part if len(part) < LONGEST_TEXT else f"{part}…"


def _line(record: logging.LogRecord) -> dict[str, Any]:
    """All that is logged passes here on its way out, and secrets are redacted."""
    import logging

    message = _message(record)
    line: dict[str, Any] = {
        "time": logging.Formatter().formatTime(record, "%Y-%m-%dT%H:%M:%S"),
        "level": record.levelname,
        "logger": redact(record.name),
        "message": _readable_part(message),
    }
    call = _call.get()
    if call is not None:
        facts = call_facts(call)
        facts["request_id"] = shown(facts["request_id"])
        line |= {name: redact_in(fact) for name, fact in facts.items() if fact is not None}
    if record.exc_info:
        line["error"] = _readable_part(_stack(record.exc_info))
    for name, fact in line.items():
        if isinstance(fact, str):
            line[name] = errors.readable(fact)
        elif not -(2**63) <= fact < 2**64:  # an id that only some formats carry
            line[name] = errors.shown(fact)
    return line
