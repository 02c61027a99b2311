"""Flow control of a call's events, between the reader thread and the code that consumes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, RLock
from time import monotonic
from typing import Any


class Events:
    """The events of one call that have arrived and are not consumed yet.

    Pauses the worker's events while more than `LIMIT` of them wait, and resumes them at half of that.
    send(command): sends "pause" or "resume" for the call. lock: a reentrant one.
    """

    LIMIT = 256

    def __init__(self, send: Callable[[str], None], lock: RLock) -> None:
        self._send = send
        self._changed = Condition(lock)
        self._waiting: deque[tuple[str, Any]] = deque()
        self._is_paused = False
        self._is_unlimited = False
        self._has_ended = False

    def put(self, event: str, data: Any) -> None:
        """Add an event without waiting. Does nothing after the end."""
        with self._changed:
            if self._has_ended:
                return
            self._waiting.append((event, data))
            if len(self._waiting) > self.LIMIT and not (self._is_paused or self._is_unlimited):
                self._is_paused = True
                self._send("pause")
            self._changed.notify()

    def take(self, deadline: float | None = None) -> tuple[str, Any] | None:
        """Wait for the next event and remove it; return None after the last one.

        deadline: in seconds of time.monotonic(). Raises TimeoutError when it passes.
        """
        with self._changed:
            while not self._waiting:
                if self._has_ended:
                    return None
                left = None if deadline is None else deadline - monotonic()
                if not self._changed.wait(left):
                    raise TimeoutError
            if self._is_paused and len(self._waiting) <= self.LIMIT // 2:
                self._resume()
            return self._waiting.popleft()

    def lift_limit(self) -> None:
        """Let any number of events wait from now on."""
        with self._changed:
            self._is_unlimited = True
            if self._is_paused:
                self._resume()

    def end(self) -> None:
        """Accept no more events. Those that wait can still be taken."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Drop the events that wait."""
        with self._changed:
            self._waiting.clear()

    def _resume(self) -> None:
        self._is_paused = False
        self._send("resume")
