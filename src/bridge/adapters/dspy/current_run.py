"""The program run of the current thread, and its current call of a model, for the code that DSPy calls."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy
from dspy import lm15

from bridge.adapters.dspy.answer_cache import AnswerCache, AnswerKey, key_of
from bridge.adapters.dspy.recorder import Exchange, Recorder
from bridge.adapters.dspy.replies.chat import ChatReply
from bridge.adapters.dspy.replies.text import Reply
from bridge.errors import CallEnded, ReplyTooLarge

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.settings import LMSettings
    from bridge.adapters.dspy.tools import Tool

current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)
current_call: ContextVar[ModelCall | None] = ContextVar("current_call", default=None)
current_rollout: ContextVar[int] = ContextVar("current_rollout", default=0)


@contextmanager
def rollout(number: int) -> Iterator[None]:
    """Make equal requests different for the cache inside the `with` statement, where a task is done again."""
    token = current_rollout.set(number)
    try:
        yield
    finally:
        current_rollout.reset(token)


def current_context() -> Context:
    """Return the context of the command for which a module runs: to check whether the call is over, or emit events.

    Raises RuntimeError outside of a run.
    """
    run = current_run.get()
    if run is None:
        raise RuntimeError("no module is running in this thread")
    return run.context


class Run:
    """One run of a program: what its calls of models share. They may run at the same time.

    names: the host's names of the output fields, by label. caches: the session's cached answers of each model that has
    a cache. names_calls: whether events name the predictor and the call. tools: the host's tools that the module may
    ask for. recorder: records the requests to models; None: nobody asks for them. model: which was the last to answer,
    None before that. truncated: whether any response was cut off. is_over: whether the module has returned.
    """

    def __init__(
        self,
        context: Context,
        names: dict[str, str],
        caches: dict[LMSettings, AnswerCache] | None = None,
        names_calls: bool = False,
        tools: tuple[Tool, ...] = (),
        recorder: Recorder | None = None,
    ) -> None:
        self.context = context
        self.names = names
        self.caches = caches or {}
        self.names_calls = names_calls
        self.tools = tools
        self.recorder = recorder
        self.calls = itertools.count(1)
        self.model: str | None = None
        self.truncated = False
        self.is_over = False

    def check(self) -> None:
        """Raise CallEnded if the call or the run is over: threads of a module may still work then."""
        self.context.check()
        if self.is_over:
            raise CallEnded("the run is over")


class ModelCall:
    """One call of a model by a run.

    fields: the labels of the fields that it asks for. kind: the class that reads its replies. source: further keys of
    its events. reply, truncated: the text of the last response, and whether it was cut off. attempts: how many times
    the last request was sent. cost: of its response in US dollars, if that is known. has_streamed: whether text of that
    request was sent to the host. refusal: text of its refusal that came outside of the response. rollout: see
    `rollout`. given_up: how many models were asked in vain.
    """

    def __init__(self, run: Run, fields: tuple[str, ...] = (), kind: type[Reply] = ChatReply) -> None:
        self.run = run
        self.context = run.context
        self.fields = fields
        self.kind = kind
        self.source = _source() if run.names_calls and run.context.streaming else {}
        self.has_begun = False
        self.reply = ""
        self.truncated = False
        self.attempts = 1
        self.cost: float | None = None
        self.has_streamed = False
        self.refusal = ""
        self.rollout = current_rollout.get()
        self.given_up = 0
        self._model: LMSettings | None = None
        self._repetition: int | None = None
        self._started = 0.0
        self._answers = 0
        self._new: list[tuple[AnswerCache, AnswerKey, lm15.Response]] = []

    def begin_request(self) -> None:
        """Note that a request begins: a call makes several if it asks for several answers."""
        self.has_begun, self.has_streamed, self.refusal, self.cost = True, False, "", None
        self._started = time.monotonic()
        if self.run.names_calls:
            self.source = {**self.source, "call": next(self.run.calls)}

    def asks(self, model: LMSettings | None, repetition: int | None) -> None:
        """Note which model is asked. repetition: DSPy's number of one that is to have its own answer (rollout_id)."""
        self._model, self._repetition = model, repetition
        self.has_begun = False

    def count_refused(self, model: str) -> None:
        """Count a request that failed before an engine got it. Raises CallEnded, as an engine does."""
        self.run.check()
        self.context.count("lm_calls", 1)
        self.context.count("lm_errors", 1)
        self.context.emit("status", {"status": "lm_call", "model": model, **self.source})

    def give_up(self, model: str, next_model: str, code: str | None) -> None:
        """Note, and announce to the host, that another model is asked because this one has failed."""
        self.context.check()
        self.given_up += 1
        self.context.count("lm_fallbacks", 1)
        status = {"status": "lm_fallback", "model": next_model, "failed": model, "lm_code": code}
        self.context.emit("status", {**status, **self.source})

    def cached(self, request: lm15.Request) -> tuple[AnswerCache, AnswerKey] | None:
        """Return the cache for an answer to `request`, and its key there; None if the model has no cache."""
        if not self.run.caches or self._model is None:
            return None
        cache = self.run.caches.get(self._model)
        # Several completions of one call are different answers.
        return None if cache is None else (cache, key_of(request, self.rollout, self._repetition, self._answers))

    def record(
        self, request: lm15.Request, response: lm15.Response, cached: tuple[AnswerCache, AnswerKey] | None = None
    ) -> None:
        """Record a response of the model. cached: where it is cached once it could be read."""
        self._read(request, response)
        if self.run.recorder is not None:
            self._report(self.run.recorder, request, response, self.attempts, self.cost)
        if cached is not None:
            self._new.append((*cached, response))

    def record_failure(self, request: lm15.Request, code: str, response: lm15.Response | None = None) -> None:
        """Record that the last request has failed. code: of the error. response: one that is of no use."""
        if self.run.recorder is not None:
            self._report(self.run.recorder, request, response, self.attempts, self.cost, code)

    def record_cached(self, request: lm15.Request, response: lm15.Response) -> None:
        """Record a cached response, and stream it to the host like a new one."""
        self._read(request, response)
        if self.run.recorder is not None:
            self._report(self.run.recorder, request, response, 0, 0.0)
        self.context.count("cache_hits", 1)
        if self.context.streaming:
            self.context.emit("status", {"status": "cache_hit", "model": request.model, **self.source})
            fields = self.reader()
            self.emit_text([*fields.feed(self.reply), *fields.finish()])

    def _report(
        self,
        recorder: Recorder,
        request: lm15.Request,
        response: lm15.Response | None,
        attempts: int,
        cost: float | None,
        error: str | None = None,
    ) -> None:
        seconds = time.monotonic() - self._started
        recorder.add(Exchange(request, response, seconds=seconds, attempts=attempts, cost=cost, error=error))

    def _read(self, request: lm15.Request, response: lm15.Response) -> None:
        self._answers += 1
        self.run.model = request.model
        self.reply = response.message.text or ""
        self.truncated = response.finish_reason == "length"
        self.run.truncated = self.run.truncated or self.truncated

    def cache_responses(self) -> None:
        """Cache the new responses, now that they could be read."""
        for cache, key, response in self._new:
            cache.add(key, response)

    def announce_fallback(self, model: str, adapter: str) -> None:
        """Tell the host that the model is asked again, in another format, because its reply cannot be read."""
        self.run.check()
        self.context.count("lm_fallbacks", 1)
        reason = {"adapter": adapter, "lm_code": "adapter_parse_error"}
        self.context.emit("status", {"status": "lm_fallback", "model": model, **reason, **self.source})

    def reader(self) -> Reply:
        """Return a reader of the fields that are streamed to the host.

        A field that DSPy's module adds is not streamed if a field of the host has its name.
        """
        names = self.run.names
        hosts = set(names.values())
        return self.kind(field for field in self.fields if field in names or field not in hosts)

    def emit_text(self, pieces: list[tuple[str, str]]) -> None:
        """Stream the pieces that a reader returned, as (label, text)."""
        for field, text in pieces:
            self.has_streamed = True
            self._emit_chunk(self.run.names.get(field, field), text)

    def _emit_chunk(self, field: str, text: str) -> None:
        try:
            self.context.emit("chunk", {"field": field, "text": text, **self.source})
        except ReplyTooLarge:
            if len(text) < 2:
                raise
            half = len(text) // 2
            self._emit_chunk(field, text[:half])
            self._emit_chunk(field, text[half:])


@contextmanager
def call_of_run() -> Iterator[ModelCall | None]:
    """Yield the current call; a new one if the run's module calls the model without a signature; None outside a run."""
    call, run = current_call.get(), current_run.get()
    if call is not None or run is None:
        yield call
        return
    call = ModelCall(run)
    token = current_call.set(call)
    try:
        yield call
    finally:
        current_call.reset(token)
    call.cache_responses()


def _source() -> dict[str, Any]:
    """Return what the events of the current call say about its origin: the name of the predictor, if it has one."""
    modules = dspy.settings.caller_modules or []
    # The outermost module that contains the predictor has the longest name for it. A copy made during the run, as by
    # BestOfN, is contained in inner modules only.
    names = (name for module in modules for name, each in module.named_predictors() if each is modules[-1])
    predictor = next(names, None)
    return {} if predictor is None else {"predictor": predictor}


class PassedError(BaseException):
    """Carries `error` through DSPy, which would handle an Exception of an engine or a tool itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
