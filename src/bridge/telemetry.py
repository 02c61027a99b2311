"""Logs: to stderr, one JSON object a line where nobody watches, plain lines on a terminal.

Also the one place that knows the secrets of this process, so that no text that leaves it shows one.
The standard library's logging is a fifth of a worker's start: nothing here imports it before the
first frame is answered.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

_secrets: set[str] = set()


def keep_secret(value: str) -> None:
    """From now on `conceal` hides `value`; shorter than 8 characters it is taken for no secret."""
    if len(value) >= 8:
        _secrets.add(value)


def conceal(text: str) -> str:
    """`text` with every known secret as `***`."""
    for secret in _secrets:
        text = text.replace(secret, "***")
    return text


def warn(message: str, *, error: BaseException | None = None, **extra: Any) -> None:
    """Log a warning of the worker's own. extra: request_id."""
    import logging

    logging.getLogger("bridge.worker").warning(message, exc_info=error, extra=extra)


def log_to_stderr(level: str) -> None:
    """Send this process's logs from `level` up ("DEBUG" to "CRITICAL") to stderr."""
    import logging

    class JsonLines(logging.Formatter):
        """One object a line: time, level, logger, message, request_id, error."""

        def format(self, record: logging.LogRecord) -> str:
            line = {
                "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),
            }
            request_id = getattr(record, "request_id", None)
            if request_id is not None:
                line["request_id"] = request_id
            if record.exc_info:
                line["error"] = self.formatException(record.exc_info)
            return conceal(msgspec.json.encode(line).decode())

    handler = logging.StreamHandler(sys.stderr)
    if not sys.stderr.isatty():
        handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
