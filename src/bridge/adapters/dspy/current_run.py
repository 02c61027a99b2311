"""The program run of the current thread, for the code that DSPy calls during it."""

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


class Run:
    """One run of a program.

    names: the host's names of the output fields, by label. cache: the session's cached answers, if it has a cache.
    fields: the labels of the fields that the current request asks for. reply, reply_truncated: the text of the last
    response, and whether it was cut off. truncated: whether any response was. attempts: how many times the last
    request was sent. has_streamed: whether text of the current request was sent to the host. refusal: text of the
    current request's refusal that came outside of the response.
    """

    def __init__(self, context: Context, names: dict[str, str], cache: AnswerCache | None = None) -> None:
        self.context = context
        self.names = names
        self.cache = cache
        self.fields: tuple[str, ...] = ()
        self.reply = ""
        self.reply_truncated = False
        self.truncated = False
        self.attempts = 1
        self.has_streamed = False
        self.refusal = ""
        self._new: list[tuple[lm15.Request, lm15.Response]] = []

    def record(self, request: lm15.Request, response: lm15.Response) -> None:
        """Record a response of the model."""
        self._read(response)
        if self.cache is not None:
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
        self.reply_truncated = response.finish_reason == "length"
        self.truncated = self.truncated or self.reply_truncated

    def cache_responses(self) -> None:
        """Cache the run's new responses, now that the program could use them."""
        for request, response in self._new:
            assert self.cache is not None
            self.cache.add(request, response)

    def reader(self) -> FieldReader:
        """Return a reader of the fields that are streamed to the host.

        A field that DSPy's module adds is not streamed if a field of the host has its name.
        """
        hosts = set(self.names.values())
        return FieldReader(field for field in self.fields if field in self.names or field not in hosts)

    def emit_text(self, pieces: list[tuple[str, str]]) -> None:
        """Stream the pieces that a reader returned, as (label, text)."""
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


class PassedError(BaseException):
    """Carries `error` through DSPy, which would handle an Exception of an engine or a tool itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
