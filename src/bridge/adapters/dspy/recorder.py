"""Records the requests of a run to models: for what a command includes in its result, and for the session's history."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bridge.security.redaction import redact, redact_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dspy import lm15


class Exchange:
    """A request to a model and how it ended.

    seconds: from the first attempt to the end. attempts: how often it was sent; 0: it was answered from the cache.
    response: None if there was none. error: the code of the failure. cost: in US dollars, if it is known.
    """

    __slots__ = ("attempts", "cost", "error", "request", "response", "seconds")

    def __init__(
        self,
        request: lm15.Request,
        response: lm15.Response | None,
        *,
        seconds: float,
        attempts: int,
        cost: float | None = None,
        error: str | None = None,
    ) -> None:
        self.request = request
        self.response = response
        self.seconds = round(seconds, 6)
        self.attempts = attempts
        self.cost = cost
        self.error = error

    @property
    def usage(self) -> dict[str, Any]:
        """Return the model, the tokens as the provider counts them, whether it is cached, and the attempts."""
        tokens = None if self.response is None else self.response.usage
        usage = {
            "model": self.request.model,
            "input_tokens": None if tokens is None else tokens.input_tokens,
            "output_tokens": None if tokens is None else tokens.output_tokens,
            "cached": self.attempts == 0,
            "attempts": self.attempts,
        }
        for name in ("cache_read_tokens", "cache_write_tokens", "reasoning_tokens"):
            count = getattr(tokens, name, None)
            if count is not None:
                usage[name] = count
        return usage if self.error is None else {**usage, "error": self.error}

    @property
    def prompt(self) -> dict[str, Any]:
        """Return the model, the messages that were sent and the reply, without secrets and without media."""
        request = self.request
        system = [] if not request.system else [{"role": "system", "content": _content(request.system)}]
        messages = [{"role": message.role, "content": _content(message.parts)} for message in request.messages]
        prompt: dict[str, Any] = {"model": request.model, "messages": [*system, *messages], "reply": None}
        if self.error is not None:
            prompt["error"] = self.error
        if self.response is not None:
            parts = self.response.message.parts
            prompt["reply"] = redact("".join(part.text for part in parts if part.type == "text"))
            others = [_part(part) for part in parts if part.type != "text"]
            if others:
                prompt["other_parts"] = others
        return prompt


class Recorder:
    """The exchanges of one run with models, in the order in which they ended. Several threads may add some.

    also: called with each exchange, for the session's history.
    """

    def __init__(self, also: Callable[[Exchange], object] | None = None) -> None:
        self.exchanges: list[Exchange] = []
        self._also = also

    def add(self, exchange: Exchange) -> None:
        """Add an exchange that has ended."""
        self.exchanges.append(exchange)
        if self._also is not None:
            self._also(exchange)

    @property
    def cost(self) -> float | None:
        """Return what all exchanges have cost, in US dollars; None if that of one of them is not known."""
        costs = [each.cost for each in self.exchanges]
        known = [cost for cost in costs if cost is not None]
        return math.fsum(known) if len(known) == len(costs) else None


def _content(parts: str | Iterable[Any]) -> Any:
    """Return the text of a message, or a list with an entry for each part if it has others than text."""
    if isinstance(parts, str):
        return redact(parts)
    parts = list(parts)
    if all(part.type == "text" for part in parts):
        return redact("".join(part.text for part in parts))
    return [_part(part) for part in parts]


def _part(part: Any) -> dict[str, Any]:
    """Return a part of a message as plain data; the size of media in place of their bytes."""
    plain: dict[str, Any] = {"type": part.type}
    if hasattr(part, "media_type"):
        plain["mime_type"] = part.media_type
        if part.data is not None:
            plain["bytes"] = len(part.data) * 3 // 4 - part.data[-2:].count("=")  # of base64
    for name in ("text", "id", "name", "input", "value", "file_id"):
        value = getattr(part, name, None)
        if value is not None:
            plain[name] = redact_in(value)
    url = getattr(part, "url", None)
    if url is not None:
        plain["url"] = "data:…" if url[:5].lower() == "data:" else redact(url)
    content = getattr(part, "content", None)
    return plain if content is None else {**plain, "content": _content(content)}
