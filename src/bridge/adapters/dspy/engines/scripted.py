"""A language model with prepared answers, for tests of a host."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

from dspy import lm15

from bridge.adapters.dspy.current_run import ModelCall, current_call
from bridge.adapters.dspy.replies.chat import ChatReply


class ScriptedAnswers:
    """A text model (see TextEngine).

    answers: a list, used in order, or a map from a part of the last message to the answer. An answer is a map of output
    fields, or the text of the reply.
    """

    def __init__(self, answers: list[Any] | dict[str, Any]) -> None:
        self._answers = answers
        self._next = 0
        self._lock = threading.Lock()

    def reply(self, system: str, messages: Sequence[str]) -> tuple[str, int]:
        """Return the next answer, and the number of words in the last message.

        Raises lm15.InvalidRequestError if there is no answer for it.
        """
        prompt = messages[-1]
        return _text(self._answer(prompt)), len(prompt.split())

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
    """Return an answer in the format in which the current call reads replies."""
    if not isinstance(answer, dict):
        return answer if isinstance(answer, str) else json.dumps(answer)
    call = current_call.get()
    kind = ChatReply if call is None else call.kind
    return kind.written({label: value for name, value in answer.items() for label in _labels(name, call)})


def _labels(name: str, call: ModelCall | None) -> list[str]:
    """Return the labels of the field `name` in the prompt: two if both the host and DSPy have a `reasoning`."""
    if call is None:
        return [name]
    hosts = [label for label, host_name in call.run.names.items() if host_name == name]
    asked = [label for label in dict.fromkeys((name, *hosts)) if label in call.fields]
    return asked or hosts or [name]
