"""An engine for `dspy.LM` that answers text with text, in this process."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol

from dspy import lm15


class TextModel(Protocol):
    """A model in this process that answers a prompt with text."""

    def reply(self, system: str, messages: Sequence[str]) -> tuple[str, int]:
        """Return the reply, and the number of words of the prompt that count as used."""


class TextEngine:
    """Serves a `dspy.LM` from a text model. Usage counts words instead of tokens.

    words_per_piece: of a reply that is streamed.
    """

    def __init__(self, model: TextModel, words_per_piece: int = 1) -> None:
        self._model = model
        self._words_per_piece = words_per_piece

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the model's reply to `request`."""
        system = _text(request.system or "")
        text, words = self._model.reply(system, [_text(message.parts) for message in request.messages])
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=words, output_tokens=len(text.split())),
        )

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """Yield the same reply in events: the start, pieces of the text, the end with the usage."""
        response = self.complete(request)
        words = re.findall(r"\s*\S+|\s+", response.message.text or "")
        yield lm15.StreamStartEvent(model=response.model)
        for first in range(0, len(words), self._words_per_piece):
            piece = "".join(words[first : first + self._words_per_piece])
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=piece))
        yield lm15.StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage)

    def close(self) -> None:
        """Do nothing; DSPy closes its engines."""


def _text(parts: str | Sequence[lm15.Part]) -> str:
    return parts if isinstance(parts, str) else "".join(part.text for part in parts if isinstance(part, lm15.TextPart))
