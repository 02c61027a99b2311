"""Rows: the same work for each of many inputs of one command, on several threads, and the results of them.

A row that fails has an error as its result; the others continue. Events of the runs themselves are not sent: chunks of
several rows at once would be of no use to a host.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, cast

import msgspec

from bridge import errors
from bridge.adapter import reason_of
from bridge.wire._frames import codec_for
from bridge.wire.messages import failure

if TYPE_CHECKING:
    from bridge._dispatch import Context

MOST_THREADS = 256
DEFAULT_THREADS = 8  # of DSPy, too
STEPS = 100  # of the progress of many rows that are announced
STEP = 1.0  # seconds between two announcements, if a step takes longer

ThreadCount = Annotated[int, msgspec.Meta(ge=1, le=MOST_THREADS)]


def run_rows(
    count: int,
    work: Callable[[int, Context], Any],
    finish: Callable[[int, Any], None],
    threads: int,
    context: Context,
) -> None:
    """Call work(index, context of the row) for each index below `count`, on `threads` threads, and finish(index, what
    work returned) after it, one at a time.

    Raises the first error of either, when no thread works on a row any more; CallEnded if the call is over.
    """
    indexes = iter(range(count))  # which several threads may advance
    finishing = Lock()
    row_context = RowContext.of(context)

    def run() -> None:
        for index in indexes:
            context.check()
            result = work(index, row_context)
            with finishing:
                finish(index, result)

    context.run_together(run, min(threads, count))


class RowContext:
    """The context of a command for the run of one row: that of the command, but events of the run are not sent."""

    streaming = False

    def __init__(self, context: Context) -> None:
        self._context = context

    @classmethod
    def of(cls, context: Context) -> Context:
        """Return the context of a row of a command, which `context` is the context of."""
        return cast("Context", cls(context))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def emit(self, event: str, data: Any) -> None:
        """Send nothing. Raises CallEnded if the call is over."""
        self._context.check()


class RowResults:
    """The results of the rows of a command: each is an event for a host that wants events, and a part of the reply.

    Results for the reply are kept encoded, so that they need as little memory as in the reply. rows: these; None if
    the host does not want them there. done: how many have been added. failed: how many of these have an error.
    """

    def __init__(self, phase: str, total: int, context: Context, *, keep: bool) -> None:
        self.rows: list[msgspec.Raw] | None = [msgspec.Raw()] * total if keep else None
        self.done = 0
        self.failed = 0
        self._phase = phase
        self._total = total
        self._context = context
        self._codec = codec_for(context.format)
        self._limit: int = context.worker.path.max_frame
        self._bytes = 0
        self._announced = 0.0

    def encoded(self, index: int, row: dict[str, Any]) -> tuple[dict[str, Any], msgspec.Raw]:
        """Return a row that can be sent, and its encoding: that of an error if the row itself cannot be sent."""
        try:
            return row, self._encoded(index, row)
        except errors.BridgeError as error:
            found = row.get("error") or error_of(error)
        row = {name: value for name, value in row.items() if name != "outputs"}
        try:
            row["error"] = found
            return row, self._encoded(index, row)
        except errors.BridgeError:  # what an exception has as details may be anything
            row["error"] = {**found, "details": {}}
            return row, self._encoded(index, row)

    def _encoded(self, index: int, row: dict[str, Any]) -> msgspec.Raw:
        what = f"results[{index}]"
        outbox = self._codec.encoded(row, row, what, what, self._limit, False)
        if outbox is None:
            raise errors.ReplyTooLarge(f"{what} is longer than {self._limit} bytes", limit=self._limit)
        return msgspec.Raw(outbox.payload())

    def add(self, index: int, row: dict[str, Any], encoded: msgspec.Raw, **progress: Any) -> None:
        """Add the result of a row, which `encoded` has returned. progress: further keys of the event.

        Raises ReplyTooLarge as soon as the reply cannot hold all results.
        """
        self.done += 1
        self.failed += "error" in row
        if self.rows is not None:
            self.rows[index] = encoded
            self._bytes += len(encoded)
            if self._bytes > self._limit:
                raise errors.ReplyTooLarge(
                    f"the results of {self.done} of {self._total} rows are longer than a reply of {self._limit} bytes:"
                    " send the request with stream and results: false, and each result is an event",
                    limit=self._limit,
                )
        if self._context.streaming:
            self._context.emit("row", {"index": index, **row})
            self._announce(progress)

    def _announce(self, more: dict[str, Any]) -> None:
        now, done, total = time.monotonic(), self.done, self._total
        is_step = done * STEPS // total > (done - 1) * STEPS // total
        if is_step or now - self._announced >= STEP:
            self._announced = now
            self._context.emit("progress", {"phase": self._phase, "done": done, "total": total, **more})


def error_of(error: BaseException) -> dict[str, Any]:
    """Return an error as a part of a result, without secrets."""
    if not isinstance(error, errors.BridgeError):
        error = errors.HandlerError(reason_of(error), type=type(error).__name__)
    failed = failure(None, error, "")
    return {
        "code": failed.code,
        "message": failed.error,
        "category": failed.category,
        "severity": failed.severity,
        "recovery": failed.recovery,
        "details": failed.details,
    }
