"""What an actor does with log records: those of its workers go to the host if it wants them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from bridge.errors import BridgeError
from bridge.host.logs import FACTS


class ToHost(logging.Handler):
    """Sends the records of workers, and of the pool, as log events. send(line): sends one."""

    def __init__(self, send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(logging.DEBUG)
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        if not hasattr(record, "worker_pid") and not record.name.startswith("bridge."):
            return
        line = {"logger": record.name, "level": record.levelname, "message": record.getMessage()}
        facts = {name: getattr(record, name, None) for name in FACTS}
        error = {"error": record.exc_text} if record.exc_text else {}
        self._send(line | facts | error)


def silence_functions() -> None:
    """Log no failures of the host's functions, which the host logs itself; their texts may be anything."""
    logging.getLogger("bridge").addFilter(_is_own)


def _is_own(record: logging.LogRecord) -> bool:
    return not (record.exc_info and isinstance(record.exc_info[1], BridgeError))
