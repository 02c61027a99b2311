"""The worker's log events as records of `logging`."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from bridge.host.worker import Worker

FACTS = ("session_id", "request_id", "command", "traceparent")
MOST_WAITING = 10_000  # lines that wait for slow handlers; older ones are dropped

Line = dict[str, Any]


def are_forwarded(logs: str) -> bool:
    """Return whether a client's option `logs` asks for records of `logging`. Raises ValueError for an unknown value."""
    if logs not in ("stderr", "logging"):
        raise ValueError(f'logs must be "stderr" or "logging", not {logs!r}')
    return logs == "logging"


def log(line: Line, worker: Worker) -> None:
    """Log a worker's log event with its logger, level and stack.

    The record's attributes session_id, request_id, command and traceparent are those of the call that it is about, or
    None; worker_pid is that of `worker`, if it is known. An exception that a handler or a filter raises is logged too.
    """
    try:
        _log(line, worker.pid)
    except Exception:
        logging.getLogger("bridge").exception("cannot log a line of the worker")


def _log(line: Line, pid: int | None) -> None:
    logger = logging.getLogger(str(line.get("logger") or "bridge.worker"))
    level = logging.getLevelNamesMapping().get(str(line.get("level")), logging.WARNING)
    if not logger.isEnabledFor(level):
        return
    facts = {name: line.get(name) for name in FACTS}
    record = logger.makeRecord(
        logger.name, level, "(worker)", 0, str(line.get("message", "")), (), None, "", {**facts, "worker_pid": pid}
    )
    if isinstance(line.get("error"), str):
        record.exc_text = line["error"]
    logger.handle(record)


class LogForwarder:
    """Logs the lines of a worker one after the other, on a thread that `run` starts for them.

    Handlers may be slow, may raise, and may use the client: the thread that reads frames never runs them.
    """

    def __init__(self, worker: Worker, run: Callable[[Callable[[], None]], None]) -> None:
        self._worker = worker
        self._run = run
        self._waiting: deque[Line] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._thread = 0

    def add(self, line: Line) -> None:
        """Log `line` soon. Drops the oldest line that waits if there are too many, and logs how many were dropped."""
        with self._lock:
            self._waiting.append(line)
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1
            if not self._is_idle.is_set():
                return
            self._is_idle.clear()
        try:
            self._run(self._log_all)
        except RuntimeError:  # out of threads: the next line tries again
            self._is_idle.set()

    def flush(self, timeout: float) -> None:
        """Wait until all lines have been logged, at most `timeout` seconds. Does not wait in a logging handler."""
        if self._thread != threading.get_ident():
            self._is_idle.wait(timeout)

    def _log_all(self) -> None:
        self._thread = threading.get_ident()
        while (line := self._next()) is not None:
            log(line, self._worker)

    def _next(self) -> Line | None:
        with self._lock:
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                return {
                    "level": "WARNING",
                    "message": f"{dropped} lines of the worker were dropped: logging is too slow",
                }
            if self._waiting:
                return self._waiting.popleft()
            self._thread = 0
            self._is_idle.set()
            return None
