"""The engine around all others: it cancels, repeats, streams and counts requests to models.

DSPy's own streaming needs an event loop; this works on plain threads. A call whose host wants events reads the engine's
stream instead of its whole response.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from itertools import count
from typing import Any
from urllib.request import getproxies

import dspy
from dspy import lm15
from dspy._vendor.lm15.providers import base as lm15_base

from bridge.adapters.dspy.current_run import ModelCall, PassedError, call_of_run, current_call
from bridge.adapters.dspy.engines.prices import cost_usd
from bridge.adapters.dspy.engines.retries import NO_RETRIES, Retries
from bridge.adapters.dspy.engines.transport import NO_HEADERS, Transport
from bridge.adapters.dspy.model_errors import refusal
from bridge.adapters.dspy.replies.text import well_formed
from bridge.telemetry.activity import activity

log = logging.getLogger("bridge.lm")

# What DSPy asks an engine about the features of its models.
FEATURES = ("supports_function_calling", "supports_reasoning", "supports_response_schema", "supported_params")
LONGEST_EVENT = 1 << 28  # bytes of one event in a provider's stream


class SupervisedEngine:
    """Wraps `engine`: ends calls that are over, repeats failed requests, streams replies, and counts what each costs.

    priced: whether DSPy's price list may contain the model.
    """

    def __init__(self, engine: Any, *, priced: bool = True, retries: Retries = NO_RETRIES) -> None:
        self._complete: Callable[[lm15.Request], lm15.Response] = engine.complete
        self._stream: Callable[[lm15.Request], Iterator[Any]] | None = getattr(engine, "stream", None)
        self._priced = priced
        self._retries = retries
        for feature in FEATURES:
            if hasattr(engine, feature):
                setattr(self, feature, getattr(engine, feature))

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the engine's response. Raises the engine's errors, and PassedError with ours."""
        with call_of_run() as call:
            if call is None:
                return self._complete(request)
            try:
                return self._answered(request, call)
            except (lm15.LM15Error, dspy.DSPyError):
                raise
            except Exception as error:
                raise PassedError(error) from error

    def _answered(self, request: lm15.Request, call: ModelCall) -> lm15.Response:
        call.run.check()
        call.begin_request()
        cached = call.cached(request)
        found = None if cached is None else cached[0].find(cached[1])
        if found is not None:
            call.record_cached(request, found)
            return found
        for attempt in count(1):
            call.attempts = attempt
            try:
                response = self._attempt(request, call)
                break
            except lm15.LM15Error as error:
                wait = self._retries.wait(error, attempt, call.context.remaining)
                # Text that was sent to the host cannot be withdrawn.
                if wait is None or call.has_streamed:
                    call.record_failure(request, error.code or "unexpected")
                    raise
                self._pause(request, call, error, wait)
        refused = refusal(response, call.refusal)
        if refused is not None:
            call.record_failure(request, "refusal", response)
            raise refused
        call.record(request, response, cached)
        return response

    def _attempt(self, request: lm15.Request, call: ModelCall) -> lm15.Response:
        """Send the request once, and report it to listeners, counters and logs."""
        provider, _, model = request.model.partition("/")
        count = call.context.count
        with activity("lm", "chat", provider=provider, model=model) as facts:
            count("lm_calls", 1)
            try:
                if call.context.streaming and self._stream is not None:
                    response = self._streamed(self._stream, request, call)
                else:
                    with _engine_errors():
                        response = _well_formed(self._complete(request))
            except Exception as error:
                count("lm_errors", 1)
                log.debug("%s: attempt %d failed: %s", request.model, call.attempts, error)
                raise
            log.debug("%s: attempt %d: %s", request.model, call.attempts, response.finish_reason)
            amounts = {
                "input_tokens": response.usage.input_tokens,
                "output_tokens": response.usage.output_tokens,
                "cost_usd": cost_usd(request, response) if self._priced else None,
            }
            call.cost = amounts["cost_usd"]
            known = {name: amount for name, amount in amounts.items() if amount is not None}
            for name, amount in known.items():
                count(name, amount)
            facts |= known
            facts["finish_reason"] = response.finish_reason
            facts["response_model"] = response.model
        return response

    def _pause(self, request: lm15.Request, call: ModelCall, error: lm15.LM15Error, wait: float) -> None:
        """Wait `wait` seconds before the next attempt. Raises CallEnded if the call is over."""
        log.debug("%s: attempt %d in %.3f s", request.model, call.attempts + 1, wait)
        call.context.count("lm_retries", 1)
        status = {"status": "lm_retry", "model": request.model, "attempt": call.attempts + 1}
        reason = {"wait": round(wait, 3), "lm_code": error.code}
        call.context.emit("status", status | reason | call.source)
        call.context.wait(wait)

    def _streamed(
        self, stream: Callable[[lm15.Request], Iterator[Any]], request: lm15.Request, call: ModelCall
    ) -> lm15.Response:
        call.context.emit("status", {"status": "lm_call", "model": request.model, **call.source})
        fields = call.reader()
        half = ""  # the first half of a surrogate pair, until the second arrives
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
                call.context.check()
                text = half + text
                half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
                call.emit_text(fields.feed(well_formed(text[: len(text) - len(half)])))
            call.emit_text([*fields.feed(well_formed(half)), *fields.finish()])
        return response


class NativeEngines(dict[Any, Any]):
    """The dict in which a `dspy.LM` stores the engines that it creates; wraps each one.

    connections: how many each may have at once (DSPy's limit is 100). headers: those that each request gets.
    """

    def __init__(
        self, connections: int, retries: Retries = NO_RETRIES, headers: Mapping[str, str] = NO_HEADERS
    ) -> None:
        super().__init__()
        self._headers = headers
        self._connections = connections
        self._retries = retries

    def __setitem__(self, key: Any, engine: Any) -> None:
        settings = replace(engine.config, max_connections=self._connections).transport_kwargs()
        # Searching the environment for a proxy again for each request would take longer than writing the prompt.
        transport = Transport(self._headers, **settings, trust_env=bool(getproxies()))
        config = replace(engine.config, timeouts=None, transport=transport)
        engine.__init__(config, model_type=engine.model_type)
        engine.resolve = cache(engine.resolve)  # the route of a model, which depends on its name only
        engine.complete = SupervisedEngine(engine, retries=self._retries).complete
        super().__setitem__(key, engine)


def _recording_refusals(
    parse: Callable[[Any, lm15.Request, Any], Iterator[Any]],
) -> Callable[[Any, lm15.Request, Any], Iterator[Any]]:
    """Return `OpenAIChatLM.parse_stream_events`, changed to record the text of refusals, which it drops."""

    def parse_stream_events(self: Any, request: lm15.Request, raw: Any) -> Iterator[Any]:
        call = current_call.get()
        if call is not None and '"refusal"' in raw.data and raw.data.startswith("{"):
            for choice in json.loads(raw.data).get("choices") or []:
                call.refusal += (choice.get("delta") or {}).get("refusal") or ""
        return parse(self, request, raw)

    return parse_stream_events


# A provider may send a whole answer in one event; lm15 limits its lines to 64 KiB.
lm15_base.parse_sse = partial(lm15_base.parse_sse, max_line_bytes=LONGEST_EVENT, max_event_bytes=LONGEST_EVENT)
lm15.OpenAIChatLM.parse_stream_events = _recording_refusals(lm15.OpenAIChatLM.parse_stream_events)


@contextmanager
def _engine_errors() -> Iterator[None]:
    """Convert any other exception of an engine to an error of its provider."""
    try:
        yield
    except (lm15.LM15Error, dspy.DSPyError, ImportError):
        raise
    except Exception as error:
        raise lm15.LM15Error(f"{type(error).__name__}: {error}", code="unexpected") from error


def _well_formed(response: lm15.Response) -> lm15.Response:
    """Return `response` with text that UTF-8 can encode."""
    parts = response.message.parts
    texts = [well_formed(part.text) if isinstance(part, lm15.TextPart) else None for part in parts]
    if all(text is None or text is part.text for text, part in zip(texts, parts, strict=True)):
        return response
    parts = tuple([part if text is None else replace(part, text=text) for text, part in zip(texts, parts, strict=True)])
    return replace(response, message=replace(response.message, parts=parts))
