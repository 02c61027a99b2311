"""Logs: plain lines on a terminal, otherwise one JSON object for each line on stderr, or maps for the host.

Importing `logging` takes a fifth of a worker's start, so nothing here imports it before the first frame is answered.
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

MOST_LOGGERS = 100  # whose level `set_log_level` sets
LONGEST_ID = 200  # characters of the id of a call in a log line
LONGEST_TEXT = 64 * 1024  # characters of a message, and of a traceback

Send = Callable[[dict[str, Any]], None]


class _State:
    """Holds how this process logs."""

    deferred_level: str | None = None  # by `log_when_needed`, until `log_to_stderr` is called
    is_set_up = False
    send: Send | None = None
    sender: object = None  # who has set `send`

    def __init__(self) -> None:
        self.levels: dict[str | None, str] = {}  # set at run time, by the logger's name; None is the root
        self.libraries: list[str] = []  # whose loggers `log_to_stderr` takes over


_state = _State()
_call: ContextVar[Context | None] = ContextVar("call", default=None)


@contextmanager
def logging_call(context: Context) -> Iterator[None]:
    """Add the facts of a call to all lines that this thread logs inside the `with` statement."""
    token = _call.set(context)
    scope = redaction.session.set(_session_id(context) or redaction.ANY)
    try:
        yield
    finally:
        redaction.session.reset(scope)
        _call.reset(token)


def call_facts(context: Context) -> dict[str, Any]:
    """Return the facts of a call that log lines and activities have: request_id, session_id (None if the call has no
    session, or several), command, traceparent."""
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
    """Log a warning, with the traceback of `error`. Never raises, even if `error` itself cannot be shown."""
    _worker_logger().warning(message, exc_info=_exc_info(error))


def info(message: str) -> None:
    """Log a step in the life of the worker."""
    if _may_log_details():
        _worker_logger().info(message)


def debug(message: str, *args: object) -> None:
    """Log a detail, with `args` inserted into the message as by `logging`. Costs little if the level is higher, and
    next to nothing before logging is set up."""
    if _may_log_details():
        _worker_logger().debug(message, *args)


def report(message: str, *, error: BaseException | None = None) -> None:
    """Log why the worker ends, at the level CRITICAL, with the traceback of `error`."""
    _worker_logger().critical(message, exc_info=_exc_info(error))


def shown(call_id: str | int | None) -> str | int | None:
    """Return the id of a call, shortened for a log line: it may be as long as a frame."""
    if isinstance(call_id, str) and len(call_id) > LONGEST_ID:
        return f"{call_id[:LONGEST_ID]}…"
    if isinstance(call_id, int) and call_id.bit_length() > 64:
        return f"(an integer of {call_id.bit_length()} bits)"
    return call_id


def forward(send: Send | None, sender: object) -> None:
    """Pass log lines as maps to `send` from now on, for `sender`. A process has one receiver of log lines.

    send: None writes them to stderr again, if `sender` is still the one whose `send` is used.
    """
    if send is not None or sender is _state.sender:
        _state.send, _state.sender = send, None if send is None else sender


def set_log_level(level: str, logger: str | None = None) -> None:
    """Log from `level` up ("DEBUG" to "CRITICAL"): for that logger and those below it, or by default for all loggers
    without a level of their own. Takes effect at once, or when `log_to_stderr` is called.

    Raises ValueError for more names than `MOST_LOGGERS`, because Python never frees a logger.
    """
    if logger not in _state.levels and len(_state.levels) >= MOST_LOGGERS:
        raise ValueError(f"the levels of at most {MOST_LOGGERS} loggers can be set")
    _state.levels[logger] = level
    if "logging" in sys.modules:
        import logging

        logging.getLogger(logger).setLevel(level)


def log_when_needed(level: str) -> None:
    """Call `log_to_stderr(level)` when the worker itself first logs something, unless it has been called."""
    if not _state.is_set_up:
        _state.deferred_level = level


def log_to_stderr(level: str) -> None:
    """Send the logs of this process from `level` up ("DEBUG" to "CRITICAL"), and Python's warnings, to stderr or to the
    receiver that `forward` has set."""
    import logging

    class Handler(logging.StreamHandler[Any]):
        def handle(self, record: logging.LogRecord) -> Any:
            # Not in `emit`, which holds a lock that all threads need for logging: `send` may run code of the host.
            send = _state.send
            if send is not None and (passed := self.filter(record)):
                try:
                    send(_line(passed if isinstance(passed, logging.LogRecord) else record))
                    return True
                except Exception:
                    pass
            return super().handle(record)

        def format(self, record: logging.LogRecord) -> str:
            # A client that passes a worker's stderr on to a terminal sets the variable.
            if sys.stderr.isatty() or os.environ.get("BRIDGE_LOG_FORMAT") == "text":
                record.msg, record.args = _message(record), ()
                if record.exc_info:
                    record.exc_text = _stack(record.exc_info)
                return _shortened(super().format(record))
            return msgspec.json.encode(_line(record)).decode()

    _state.is_set_up, _state.deferred_level = True, None
    stream = sys.stderr.unredacted if isinstance(sys.stderr, RedactedStream) else sys.stderr
    logging.basicConfig(level=level, handlers=[Handler(stream)], force=True)
    logging.captureWarnings(True)
    threading.excepthook = _thread_failed
    for logger, chosen in _state.levels.items():
        logging.getLogger(logger).setLevel(chosen)
    for name in _state.libraries:
        _take_over(name)


def take_over_logs(library: str) -> None:
    """Make a library that writes its logs itself log like all others, with the levels of all others. Has no effect
    before `log_to_stderr` is called."""
    _state.libraries.append(library)
    if _state.is_set_up:
        _take_over(library)


class RedactedStream:
    """Replaces a text stream, and redacts secrets in what libraries print."""

    def __init__(self, stream: TextIO) -> None:
        self.unredacted = stream

    def write(self, text: str) -> int:
        """Write `text` to the replaced stream, redacted."""
        self.unredacted.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each line."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unredacted, name)


def _may_log_details() -> bool:
    """Return whether a line below WARNING may be logged; if not, `logging` need not be imported for it."""
    return "logging" in sys.modules or _state.deferred_level in ("INFO", "DEBUG")


def _worker_logger() -> logging.Logger:
    import logging

    if _state.deferred_level is not None:
        log_to_stderr(_state.deferred_level)
    return logging.getLogger("bridge.worker")


def _exc_info(error: BaseException | None) -> Any:
    if error is None:
        return None
    # Not `error.__traceback__`: the class of a handler's exception may define a property of that name, which may fail.
    return type(error), error, BaseException.__dict__["__traceback__"].__get__(error)


def _thread_failed(raised: threading.ExceptHookArgs) -> None:
    if raised.exc_type is not SystemExit:  # which ends a thread silently
        name = raised.thread.name if raised.thread else "a thread"
        warn(f"{name} failed", error=raised.exc_value)


def _take_over(library: str) -> None:
    import logging

    logger = logging.getLogger(library)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(_state.levels.get(library, "NOTSET"))


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # raised by the caller's arguments
        return f"{errors.shown(record.msg)} (with arguments that have no text)"


def _stack(exc_info: Any) -> str:
    """Return the traceback, or only the type of the exception if formatting the rest fails: `logging` would fail again
    when it reports that failure, whose context is the same exception."""
    import logging

    try:
        return logging.Formatter().formatException(exc_info)
    except BaseException:
        return f"{exc_info[0].__name__} (its traceback cannot be written)"


def _shortened(text: str) -> str:
    """Return the beginning of `text`, redacted: searching a longer one for secrets takes too long."""
    part = shorten(text, LONGEST_TEXT)
    return part if len(part) < LONGEST_TEXT else f"{part}…"


def _line(record: logging.LogRecord) -> dict[str, Any]:
    """Return a log line as a map, redacted: what a host gets, and what is written as JSON."""
    import logging

    message = _message(record)
    line: dict[str, Any] = {
        "time": logging.Formatter().formatTime(record, "%Y-%m-%dT%H:%M:%S"),
        "level": record.levelname,
        "logger": redact(record.name),
        "message": _shortened(message),
    }
    call = _call.get()
    if call is not None:
        facts = call_facts(call)
        facts["request_id"] = shown(facts["request_id"])
        line |= {name: redact_in(fact) for name, fact in facts.items() if fact is not None}
    if record.exc_info:
        line["error"] = _shortened(_stack(record.exc_info))
    for name, fact in line.items():
        if isinstance(fact, str):
            line[name] = errors.readable(fact)
        elif not -(2**63) <= fact < 2**64:  # an id that not all formats can represent
            line[name] = errors.shown(fact)
    return line
