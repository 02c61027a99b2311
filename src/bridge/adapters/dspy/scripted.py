"""A language model that answers what it was told to: for tests of a host, and for rehearsals."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

from dspy import lm15

from bridge.adapters.dspy import supervised_engine

Answers = list[Any] | dict[str, Any]


class ScriptedAnswers:
    """An engine for `dspy.LM`. answers: a list, used up in turn, or a map from a part of the last
    message to the answer. An answer is a map of output fields, or the reply's text itself."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._next = 0
        self._lock = threading.Lock()

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Return the next answer. Raises lm15.InvalidRequestError where there is none."""
        prompt = "".join(part.text for part in request.messages[-1].parts_of(lm15.TextPart))
        text = _text(self._answer(prompt))
        usage = lm15.Usage(input_tokens=len(prompt.split()), output_tokens=len(text.split()))
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=usage,
        )

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """Yield the next answer word by word."""
        response = self.complete(request)
        yield lm15.StreamStartEvent(model=response.model)
        for word in re.findall(r"\s*\S+|\s+", response.message.text or ""):
            yield lm15.StreamDeltaEvent(delta=lm15.TextDelta(text=word))
        yield lm15.StreamEndEvent(finish_reason="stop", usage=response.usage)

    def _answer(self, prompt: str) -> Any:
        if isinstance(self._answers, dict):
            for part, answer in self._answers.items():
                if part in prompt:
                    return answer
            raise lm15.InvalidRequestError("scripted: no answer for this prompt")
        with self._lock:
            if self._next >= len(self._answers):
                raise lm15.InvalidRequestError(f"scripted: all {len(self._answers)} answers are used up")
            self._next += 1
            return self._answers[self._next - 1]


def _text(answer: Any) -> str:
    if not isinstance(answer, dict):
        return answer if isinstance(answer, str) else json.dumps(answer)
    fields = (
        f"[[ ## {label} ## ]]\n{value if isinstance(value, str) else json.dumps(value)}"
        for name, value in answer.items()
        for label in _labels(name)
    )
    return "\n\n".join([*fields, "[[ ## completed ## ]]"])


def _labels(name: str) -> list[str]:
    """Return what the prompt calls the field `name`: two, where the host has a `reasoning` of
    its own beside DSPy's."""
    run = supervised_engine.running.get()
    if run is None:
        return [name]
    own = [label for label, host_name in run.names.items() if host_name == name]
    asked = [label for label in dict.fromkeys((name, *own)) if label in run.fields]
    return asked or own or [name]
