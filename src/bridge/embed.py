"""The entry point for hosts in the same process: capi/bridge.c calls it to open and close a dispatcher."""

from __future__ import annotations

import io
import sys
from typing import Literal

import msgspec

from bridge import errors
from bridge._embed import Endpoint
from bridge.adapter import load
from bridge.options import Options
from bridge.telemetry import logs
from bridge.worker import call_log, process
from bridge.worker.calls import Call
from bridge.worker.dispatch import Dispatcher


class EmbeddedOptions(Options, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Represents the options of a dispatcher in the process of its host.

    adapter: "dspy", "echo", or "module:attribute". path: directories that are put in front of sys.path, and remain
    there.
    """

    adapter: str = "dspy"
    path: tuple[str, ...] = ()
    when_stuck: Literal["report"] = "report"  # the library must not end the process of its host


_options = msgspec.json.Decoder(EmbeddedOptions).decode  # made at import, because only one thread imports


def prepare() -> None:
    """Prepare an interpreter that runs nothing but bridge. Call this once.

    Printed text goes to stderr, stdin is empty, and libraries get the environment variables that a worker sets.
    """
    sys.stdout = sys.__stdout__ = sys.stderr  # type: ignore[misc, assignment]
    sys.stdin = sys.__stdin__ = io.StringIO()  # type: ignore[misc, assignment]
    process.set_environment()


def open(options: bytes, owns_interpreter: bool) -> Handle:
    """Start a dispatcher with `options` (JSON; empty: the defaults).

    owns_interpreter: whether the interpreter runs nothing but bridge; then logging is set up too. Raises ValueError for
    invalid options and for an adapter that cannot be loaded, StoreFailed if the store cannot be opened.
    """
    try:
        chosen = _options(options or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"options: {error}") from None
    if chosen.max_memory is not None or chosen.max_cpu is not None:
        raise ValueError("options: max_memory and max_cpu limit a process, and this one is the host's")
    sys.path[:0] = [folder for folder in chosen.path if folder not in sys.path]
    try:
        adapter = load(chosen.adapter)
    except Exception as error:
        raise ValueError(f"adapter {chosen.adapter}: {error}") from error
    if owns_interpreter:
        logs.log_to_stderr(chosen.log_level)
        call_log.follow_level()
    return Handle(Dispatcher(adapter, chosen), chosen)


class Handle:
    """Represents an open dispatcher, with the methods that capi/bridge.c calls by name."""

    def __init__(self, dispatcher: Dispatcher, options: Options) -> None:
        self._dispatcher = dispatcher
        self._grace = options.grace
        self.patience_ms = int(max(options.grace, 1.0) * 1000)  # how long C waits for calls that are ending
        self.endpoint = Endpoint(
            dispatcher.path.answer,
            dispatcher.path.refuse,
            dispatcher.arrival,
            self.cancel,
            dispatcher.path.max_frame,
        )
        dispatcher.start()

    def cancel(self, number: int) -> bool:
        """Cancel the call of that number, now or when it arrives. Return whether it had no reply yet."""
        if number in self.endpoint.pending:
            self.endpoint.pending[number] = True
        return self._end(number, errors.Cancelled("the caller cancelled the call"))

    def late(self, number: int, timeout_ms: int) -> bool:
        """End the call of that number because its deadline has passed. Return whether it had no reply yet."""
        error = errors.DeadlineExceeded(f"no result within {timeout_ms} ms", timeout_ms=float(timeout_ms))
        return self._end(number, error)

    def close(self) -> int:
        """End every call and every thread. Return the number of threads that did not end."""
        self.endpoint.ended = True
        return self._dispatcher.close()

    def _end(self, number: int, error: errors.BridgeError) -> bool:
        context = self._context_of(number)
        return context is not None and self._dispatcher.calls.end(context, error)

    def _context_of(self, number: int) -> Call | None:
        calls = list(self._dispatcher.calls.open.values())
        return next((call for call in calls if getattr(call.deliver, "number", 0) == number), None)
