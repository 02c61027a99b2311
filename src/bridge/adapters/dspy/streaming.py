"""Between DSPy and its engines: where a call is stopped, and its answer streams out field by field.

DSPy's own streaming wants an event loop; this works on plain threads. The engine of each model is
tapped: a call whose host wants events reads the engine's stream instead of its whole answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from dspy import lm15

from bridge.activity import around
from bridge.adapters.dspy.prices import cost_usd

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.answers import Answers

running: ContextVar[Run | None] = ContextVar("running", default=None)


class Run:
    """One run of a program: its call, the host's names of the fields that it streams, and the
    answers that its session keeps, if it does."""

    def __init__(
        self, context: Context, names: dict[str, str], answers: Answers | None = None
    ) -> None:
        self.context = context
        self.names = names
        self.answers = answers
        self._fresh: list[tuple[lm15.Request, lm15.Response]] = []

    def got(self, request: lm15.Request, response: lm15.Response) -> None:
        """The model has answered."""
        if self.answers is not None:
            self._fresh.append((request, response))

    def succeeded(self) -> None:
        """The program made something of the answers that it got: they are worth keeping."""
        for request, response in self._fresh:
            assert self.answers is not None
            self.answers.keep(request, response)


class TappedEngine:
    """`engine`, stopping calls that are over, streaming for those that want it, and telling what
    each request to the model took.

    priced: whether DSPy's price list may know what it costs.
    """

    def __init__(self, engine: Any, *, priced: bool = True) -> None:
        self._complete: Callable[[lm15.Request], lm15.Response] = engine.complete
        self._stream: Callable[[lm15.Request], Iterator[Any]] | None = getattr(
            engine, "stream", None
        )
        self._priced = priced

    def complete(self, request: lm15.Request) -> lm15.Response:
        """As the engine's. Raises CallEnded besides."""
        run = running.get()
        if run is None:
            return self._told(request, self._complete, lambda name, amount: None)
        run.context.check()
        known = None if run.answers is None else run.answers.find(request)
        if known is not None:
            return self._recalled(request, known, run)
        ask = self._complete
        if run.context.streaming and self._stream is not None:
            ask = partial(self._streamed, self._stream, run)
        response = self._told(request, ask, run.context.count)
        run.got(request, response)
        return response

    def _told(
        self,
        request: lm15.Request,
        ask: Callable[[lm15.Request], lm15.Response],
        count: Callable[[str, float], None],
    ) -> lm15.Response:
        """What `ask` answers, told to listeners and counted."""
        provider, _, model = request.model.partition("/")
        with around("lm", "chat", provider=provider, model=model) as facts:
            count("lm_calls", 1)
            try:
                response = ask(request)
            except Exception:
                count("lm_errors", 1)
                raise
            amounts = {
                "input_tokens": response.usage.input_tokens,
                "output_tokens": response.usage.output_tokens,
                "cost_usd": cost_usd(request, response) if self._priced else None,
            }
            known = {name: amount for name, amount in amounts.items() if amount is not None}
            for name, amount in known.items():
                count(name, amount)
            facts |= known
            facts["finish_reason"] = response.finish_reason
            facts["response_model"] = response.model
        return response

    def _recalled(self, request: lm15.Request, response: lm15.Response, run: Run) -> lm15.Response:
        """An answer that was kept: for the host like one that has just come."""
        run.context.count("cache_hits", 1)
        if run.context.streaming:
            run.context.emit("status", {"status": "cache_hit", "model": request.model})
            fields = FieldSplitter()
            self._emit(run, fields.feed(response.message.text or ""))
            self._emit(run, fields.finish())
        return response

    def _streamed(
        self, stream: Callable[[lm15.Request], Iterator[Any]], run: Run, request: lm15.Request
    ) -> lm15.Response:
        run.context.emit("status", {"status": "lm_call", "model": request.model})
        fields = FieldSplitter()
        with lm15.ResponseStream(stream(request), request) as parts:
            for text in parts:
                run.context.check()
                self._emit(run, fields.feed(text))
            self._emit(run, fields.finish())
            return parts.response

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
