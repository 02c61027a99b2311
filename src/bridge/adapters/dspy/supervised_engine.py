"""Between DSPy and its engines: where a call is stopped, a request sent again, a reply streamed.

DSPy's own streaming needs an event loop; this works on plain threads. The engine of each model is
wrapped: a call whose host wants events reads the engine's stream instead of its whole answer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import dspy
from dspy import lm15
from dspy._vendor.lm15.providers import base as lm15_base

from bridge.adapters.dspy.model_errors import refusal
from bridge.adapters.dspy.prices import cost_usd
from bridge.adapters.dspy.reply_reader import FieldReader, well_formed
from bridge.adapters.dspy.retries import NO_RETRIES, Retries
from bridge.errors import ReplyTooLarge
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.answer_cache import Answers

running: ContextVar[Run | None] = ContextVar("running", default=None)
log = logging.getLogger("bridge.lm")

LONGEST_EVENT = 1 << 28  # bytes of one event in a provider's stream


class Run:
    """One run of a program: its call, the host's names of its output fields by their labels (what
    prompts call them), and the answers that its session keeps, if it does.

    fields: the labels of those that the request under way asks for. reply, reply_truncated: the
    text of the last response, and whether it was cut off. truncated: whether any was. attempts:
    how often the last request was sent.
    """

    def __init__(self, context: Context, names: dict[str, str], answers: Answers | None = None) -> None:
        self.context = context
        self.names = names
        self.answers = answers
        self.fields: tuple[str, ...] = ()
        self.reply = ""
        self.reply_truncated = False
        self.truncated = False
        self.attempts = 1
        self.has_streamed = False  # text of the request under way
        self.refusal = ""  # text of it that came outside of the response
        self._fresh: list[tuple[lm15.Request, lm15.Response]] = []

    def got(self, request: lm15.Request, response: lm15.Response) -> None:
        """Take in what the model answered. Raises OwnError where it refused to."""
        self._read(response)
        refused = refusal(response, self.refusal)
        if refused is not None:
            raise OwnError(refused)
        if self.answers is not None:
            self._fresh.append((request, response))

    def recalled(self, model: str, response: lm15.Response) -> None:
        """Take in an answer that was kept: for the host like one that has just come."""
        self._read(response)
        self.context.count("cache_hits", 1)
        if self.context.streaming:
            self.context.emit("status", {"status": "cache_hit", "model": model})
            fields = self.reader()
            self.emit_text([*fields.feed(self.reply), *fields.finish()])

    def _read(self, response: lm15.Response) -> None:
        self.reply = response.message.text or ""
        self.reply_truncated = response.finish_reason == "length"
        self.truncated = self.truncated or self.reply_truncated

    def succeeded(self) -> None:
        """Keep the answers: the program made something of them."""
        for request, response in self._fresh:
            assert self.answers is not None
            self.answers.keep(request, response)

    def reader(self) -> FieldReader:
        """Return a reader of the fields that stream.

        A field that a module adds does not, where one of the host's has its name.
        """
        hosts = set(self.names.values())
        return FieldReader(field for field in self.fields if field in self.names or field not in hosts)

    def emit_text(self, pieces: list[tuple[str, str]]) -> None:
        """Stream what a reader returned."""
        for field, text in pieces:
            self.has_streamed = True
            self._emit_chunk(self.names.get(field, field), text)

    def _emit_chunk(self, field: str, text: str) -> None:
        try:
            self.context.emit("chunk", {"field": field, "text": text})
        except ReplyTooLarge:
            if len(text) < 2:
                raise
            half = len(text) // 2
            self._emit_chunk(field, text[:half])
            self._emit_chunk(field, text[half:])


class OwnError(BaseException):
    """Carries `error` past DSPy, which takes each Exception in an engine for the provider's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class TappedEngine:
    """`engine`, stopping calls that are over, sending requests again that failed, streaming for
    those that want it, and recording what each request to the model took.

    priced: whether DSPy's price list may know what it costs.
    """

    def __init__(self, engine: Any, *, priced: bool = True, retries: Retries = NO_RETRIES) -> None:
        self._complete: Callable[[lm15.Request], lm15.Response] = engine.complete
        self._stream: Callable[[lm15.Request], Iterator[Any]] | None = getattr(engine, "stream", None)
        self._priced = priced
        self._retries = retries

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return what the engine does. Raises CallEnded and OwnError besides."""
        run = running.get()
        if run is None:
            return self._complete(request)
        try:
            return self._answered(request, run)
        except (lm15.LM15Error, dspy.DSPyError):
            raise
        except Exception as error:
            raise OwnError(error) from error

    def _answered(self, request: lm15.Request, run: Run) -> lm15.Response:
        run.context.check()
        known = None if run.answers is None else run.answers.find(request)
        if known is not None:
            run.recalled(request.model, known)
            return known
        run.has_streamed, run.refusal = False, ""
        for attempt in count(1):
            run.attempts = attempt
            try:
                response = self._attempt(request, run)
                break
            except lm15.LM15Error as error:
                wait = self._retries.wait(error, attempt, run.context.remaining)
                # What a host has shown cannot be taken back.
                if wait is None or run.has_streamed:
                    raise
                self._pause(request, run, error, wait)
        run.got(request, response)
        return response

    def _attempt(self, request: lm15.Request, run: Run) -> lm15.Response:
        """Send the request once; listeners, counters and logs learn of it."""
        provider, _, model = request.model.partition("/")
        count = run.context.count
        with activity("lm", "chat", provider=provider, model=model) as facts:
            count("lm_calls", 1)
            try:
                if run.context.streaming and self._stream is not None:
                    response = self._streamed(self._stream, request, run)
                else:
                    with _engine_errors():
                        response = _well_formed(self._complete(request))
            except Exception as error:
                count("lm_errors", 1)
                log.debug("%s: attempt %d failed: %s", request.model, run.attempts, error)
                raise
            log.debug("%s: attempt %d: %s", request.model, run.attempts, response.finish_reason)
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

    def _pause(self, request: lm15.Request, run: Run, error: lm15.LM15Error, wait: float) -> None:
        """Wait before the next attempt. Raises CallEnded when the call is over."""
        log.debug("%s: attempt %d in %.3f s", request.model, run.attempts + 1, wait)
        run.context.count("lm_retries", 1)
        status = {"status": "lm_retry", "model": request.model, "attempt": run.attempts + 1}
        reason = {"wait": round(wait, 3), "lm_code": error.code}
        run.context.emit("status", status | reason)
        run.context.wait(wait)

    def _streamed(
        self, stream: Callable[[lm15.Request], Iterator[Any]], request: lm15.Request, run: Run
    ) -> lm15.Response:
        run.context.emit("status", {"status": "lm_call", "model": request.model})
        fields = run.reader()
        half = ""  # of a character whose other half has not come
        with _engine_errors():
            parts = lm15.ResponseStream(stream(request), request)
        with parts:
            texts = iter(parts)
            while True:
                with _engine_errors():
                    text = next(texts, None)
                    if text is None:
                        response = _well_formed(parts.response)
                        break
                run.context.check()
                text = half + text
                half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
                run.emit_text(fields.feed(well_formed(text[: len(text) - len(half)])))
            run.emit_text([*fields.feed(well_formed(half)), *fields.finish()])
        return response


class NativeEngines(dict[Any, Any]):
    """The store in which a `dspy.LM` keeps the engines it makes: each is wrapped on its way in, and
    allowed as many connections as there may be calls (DSPy's limit is 100)."""

    def __init__(self, connections: int, retries: Retries = NO_RETRIES) -> None:
        super().__init__()
        self._connections = connections
        self._retries = retries

    def __setitem__(self, key: Any, engine: Any) -> None:
        config = replace(engine.config, max_connections=self._connections)
        engine.__init__(config, model_type=engine.model_type)
        engine.complete = TappedEngine(engine, retries=self._retries).complete
        super().__setitem__(key, engine)


def _refusals_kept(
    parse: Callable[[Any, lm15.Request, Any], Iterator[Any]],
) -> Callable[[Any, lm15.Request, Any], Iterator[Any]]:
    """`OpenAIChatLM.parse_stream_events`, which drops the text of refusals, without that."""

    def parse_stream_events(self: Any, request: lm15.Request, raw: Any) -> Iterator[Any]:
        run = running.get()
        if run is not None and '"refusal"' in raw.data and raw.data.startswith("{"):
            for choice in json.loads(raw.data).get("choices") or []:
                run.refusal += (choice.get("delta") or {}).get("refusal") or ""
        return parse(self, request, raw)

    return parse_stream_events


# A provider may send a whole answer in one event; lm15's own limits are 64 KiB for a line of one.
lm15_base.parse_sse = partial(lm15_base.parse_sse, max_line_bytes=LONGEST_EVENT, max_event_bytes=LONGEST_EVENT)
lm15.OpenAIChatLM.parse_stream_events = _refusals_kept(lm15.OpenAIChatLM.parse_stream_events)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Raise what is not an error of a provider's yet as one: an engine fails on its behalf."""
    try:
        yield
    except (lm15.LM15Error, dspy.DSPyError, ImportError):
        raise
    except Exception as error:
        raise lm15.LM15Error(f"{type(error).__name__}: {error}", code="unexpected") from error


def _well_formed(response: lm15.Response) -> lm15.Response:
    """Return `response` with text that every encoding can hold."""
    parts = [
        replace(part, text=well_formed(part.text)) if isinstance(part, lm15.TextPart) else part
        for part in response.message.parts
    ]
    if all(new is old or new == old for new, old in zip(parts, response.message.parts, strict=True)):
        return response
    return replace(response, message=replace(response.message, parts=tuple(parts)))
