"""The entry point for hosts in the same process: capi/bridge.c calls it to open and close a dispatcher."""

from __future__ import annotations

import io
import sys
from typing import Literal

import msgspec

from bridge import errors
from bridge._dispatch import Context
from bridge._embed import Endpoint
from bridge.adapter import load
from bridge.options import Options
from bridge.telemetry import logs
from bridge.worker import call_log, process
from bridge.worker.dispatch import Dispatcher


class EmbeddedOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a worker in a host's process.

    adapter: "dspy", "echo", "module:attribute". path: directories that modules are imported from,
    before all others; they stay on sys.path.
    """

    adapter: str = "dspy"
    path: tuple[str, ...] = ()
    when_stuck: Literal["report"] = "report"  # the library must not end the process of its host


_options = msgspec.json.Decoder(EmbeddedOptions).decode  # here, where one thread at a time comes


def prepare() -> None:
    """Make this interpreter the host's guest; once, where it runs nothing else. What is printed
    goes to stderr, nothing reads stdin, and libraries get a worker's environment variables."""
    sys.stdout = sys.__stdout__ = sys.stderr  # type: ignore[misc, assignment]
    sys.stdin = sys.__stdin__ = io.StringIO()  # type: ignore[misc, assignment]
    process.set_environment()


def open(options: str, is_ours: bool) -> Handle:
    """A handle. is_ours: the interpreter runs nothing else, so that logs are ours to direct.

    Raises ValueError for options that are none and adapters that do not load, StoreFailed.
    """
    try:
        chosen = _options(options or "{}")
    except msgspec.MsgspecError as error:
        raise ValueError(f"options: {error}") from None
    sys.path[:0] = [place for place in chosen.path if place not in sys.path]
    try:
        adapter = load(chosen.adapter)
    except Exception as error:
        raise ValueError(f"adapter {chosen.adapter}: {error}") from error
    if is_ours:
        logs.log_to_stderr(chosen.log_level)
        call_log.follow_level()
    return Handle(Dispatcher(adapter, chosen), chosen)


class Handle:
    """Represents an open dispatcher in a host: its endpoint for requests, its cancelling and its close."""

    def __init__(self, dispatcher: Dispatcher, options: Options) -> None:
        self._dispatcher = dispatcher
        self._grace = options.grace
        self.patience_ms = int(max(options.grace, 1.0) * 1000)  # for what ends a moment later
        self.endpoint = Endpoint(
            dispatcher.path.answer,
            dispatcher.path.refuse,
            dispatcher.arrival,
            self.cancel,
            dispatcher.path.max_frame,
        )
        dispatcher.start()

    def cancel(self, number: int) -> bool:
        """End the call of that number, now or when it arrives; whether it had no reply yet."""
        if number in self.endpoint.coming:
            self.endpoint.coming[number] = True
        return self._end(number, errors.Cancelled("the caller cancelled the call"))

    def late(self, number: int, timeout_ms: int) -> bool:
        """The same, because its caller waits no longer."""
        error = errors.DeadlineExceeded(f"no result within {timeout_ms} ms", timeout_ms=float(timeout_ms))
        return self._end(number, error)

    def close(self) -> int:
        """End every call and every thread. Return the number of threads that did not end."""
        self.endpoint.ended = True
        return self._dispatcher.close()

    def _end(self, number: int, error: errors.BridgeError) -> bool:
        context = self._context_of(number)
        return context is not None and self._dispatcher.end(context, error)

    def _context_of(self, number: int) -> Context | None:
        calls = list(self._dispatcher.calls.open.values())
        return next((call for call in calls if getattr(call.deliver, "number", 0) == number), None)
