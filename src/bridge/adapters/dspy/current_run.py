"""The program run of the current thread, and its current call of a model, for the code that DSPy calls."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from dspy import lm15

from bridge.adapters.dspy.answer_cache import AnswerCache
from bridge.adapters.dspy.reply_reader import FieldReader
from bridge.errors import ReplyTooLarge

if TYPE_CHECKING:
    from bridge._dispatch import Context

current_run: ContextVar[Run | None] = ContextVar("current_run", default=None)
current_call: ContextVar[ModelCall | None] = ContextVar("current_call", default=None)


class Run:
    """One run of a program: what its calls of models share. They may run at the same time.

    names: the host's names of the output fields, by label. cache: the session's cached answers, if it has a cache.
    truncated: whether any response was cut off.
    """

    def __init__(self, context: Context, names: dict[str, str], cache: AnswerCache | None = None) -> None:
        self.context = context
        self.names = names
        self.cache = cache
        self.truncated = False


class ModelCall:
    """One call of a model by a run.

    fields: the labels of the fields that it asks for. reply, truncated: the text of the last response, and whether it
    was cut off. attempts: how many times the last request was sent. has_streamed: whether text of that request was sent
    to the host. refusal: text of its refusal that came outside of the response.
    """

    def __init__(self, run: Run, fields: tuple[str, ...] = ()) -> None:
        self.run = run
        self.context = run.context
        self.fields = fields
        self.reply = ""
        self.truncated = False
        self.attempts = 1
        self.has_streamed = False
        self.refusal = ""
        self._new: list[tuple[lm15.Request, lm15.Response]] = []

    def record(self, request: lm15.Request, response: lm15.Response) -> None:
        """Record a response of the model."""
        self._read(response)
        if self.run.cache is not None:
            self._new.append((request, response))

    def record_cached(self, model: str, response: lm15.Response) -> None:
        """Record a cached response, and stream it to the host like a new one."""
        self._read(response)
        self.context.count("cache_hits", 1)
        if self.context.streaming:
            self.context.emit("status", {"status": "cache_hit", "model": model})
            fields = self.reader()
            self.emit_text([*fields.feed(self.reply), *fields.finish()])

    def _read(self, response: lm15.Response) -> None:
        self.reply = response.message.text or ""
        self.truncated = response.finish_reason == "length"
        self.run.truncated = self.run.truncated or self.truncated

    def cache_responses(self) -> None:
        """Cache the new responses, now that they could be read."""
        for request, response in self._new:
            assert self.run.cache is not None
            self.run.cache.add(request, response)

    def reader(self) -> FieldReader:
        """Return a reader of the fields that are streamed to the host.

        A field that DSPy's module adds is not streamed if a field of the host has its name.
        """
        names = self.run.names
        hosts = set(names.values())
        return FieldReader(field for field in self.fields if field in names or field not in hosts)

    def emit_text(self, pieces: list[tuple[str, str]]) -> None:
        """Stream the pieces that a reader returned, as (label, text)."""
        for field, text in pieces:
            self.has_streamed = True
            self._emit_chunk(self.run.names.get(field, field), text)

    def _emit_chunk(self, field: str, text: str) -> None:
        try:
            self.context.emit("chunk", {"field": field, "text": text})
        except ReplyTooLarge:
            if len(text) < 2:
                raise
            half = len(text) // 2
            self._emit_chunk(field, text[:half])
            self._emit_chunk(field, text[half:])


class PassedError(BaseException):
    """Carries `error` through DSPy, which would handle an Exception of an engine or a tool itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
