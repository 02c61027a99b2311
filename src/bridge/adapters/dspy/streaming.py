"""Between DSPy and its engines: where a call is stopped, and its answer streams out field by field.

DSPy's own streaming wants an event loop; this works on plain threads. The engine of each model is
tapped: a call whose host wants events reads the engine's stream instead of its whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspy import lm15

if TYPE_CHECKING:
    from bridge._dispatch import Context

running: ContextVar[Run | None] = ContextVar("running", default=None)


class Run:
    """One run of a program: its call, and the host's names of the fields that it streams."""

    def __init__(self, context: Context, names: dict[str, str]) -> None:
        self.context = context
        self.names = names


class TappedEngine:
    """`engine`, stopping calls that are over, and streaming for those that want it."""

    def __init__(self, engine: Any) -> None:
        self._complete: Callable[[lm15.Request], lm15.Response] = engine.complete
        self._stream: Callable[[lm15.Request], Iterator[Any]] | None = getattr(
            engine, "stream", None
        )

    def complete(self, request: lm15.Request) -> lm15.Response:
        """As the engine's. Raises CallEnded besides."""
        run = running.get()
        if run is None:
            return self._complete(request)
        run.context.check()
        if not run.context.streaming or self._stream is None:
            return self._complete(request)
        return self._streamed(self._stream(request), request, run)

    def _streamed(self, events: Iterator[Any], request: lm15.Request, run: Run) -> lm15.Response:
        run.context.emit("status", {"status": "lm_call", "model": request.model})
        fields = FieldSplitter()
        with lm15.ResponseStream(events, request) as stream:
            for text in stream:
                run.context.check()
                self._emit(run, fields.feed(text))
            self._emit(run, fields.finish())
            return stream.response

    def _emit(self, run: Run, pieces: Iterator[tuple[str, str]]) -> None:
        for field, text in pieces:
            if field != "completed":
                run.context.emit("chunk", {"field": run.names.get(field, field), "text": text})


class NativeEngines(dict[Any, Any]):
    """The store in which a `dspy.LM` keeps the engines it makes: each is tapped on its way in, and
    allowed as many connections as there may be calls (DSPy's limit is 100)."""

    def __init__(self, connections: int) -> None:
        super().__init__()
        self._connections = connections

    def __setitem__(self, key: Any, engine: Any) -> None:
        config = replace(engine.config, max_connections=self._connections)
        engine.__init__(config, model_type=engine.model_type)
        engine.complete = TappedEngine(engine).complete
        super().__setitem__(key, engine)


_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]\s*")
_LONGEST_HEADER = 100  # characters; what could be one is held back


class FieldSplitter:
    """DSPy's chat format, piece by piece: the text of each field without headers between."""

    def __init__(self) -> None:
        self._field = ""
        self._held = ""

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """(field, text) of all that is certain by now."""
        self._held += text
        while header := _HEADER.search(self._held):
            # More white space may follow the header; it belongs to no field.
            if header.end() == len(self._held):
                break
            yield from self._piece(self._held[: header.start()].rstrip())
            self._field, self._held = header[1], self._held[header.end() :]
        keep = self._uncertain()
        certain, self._held = self._held[:keep], self._held[keep:]
        yield from self._piece(certain)

    def finish(self) -> Iterator[tuple[str, str]]:
        """What was held back."""
        header = _HEADER.search(self._held)
        rest = self._held[: header.start()] if header else self._held
        self._held = ""
        yield from self._piece(rest.rstrip())

    def _piece(self, text: str) -> Iterator[tuple[str, str]]:
        if self._field and text:
            yield self._field, text

    def _uncertain(self) -> int:
        """Where the white space, or the header, begins that the text may be ending in."""
        start = self._held.rfind("[[")
        if start < 0 and self._held.endswith("["):
            start = len(self._held) - 1
        if start < 0 or len(self._held) - start > _LONGEST_HEADER:
            start = len(self._held)
        return len(self._held[:start].rstrip())
