"""DSPy's chat format, with what depends on the signature alone made once a signature.

DSPy makes all of it anew for each call, which is a third of what a call of it costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import dspy

# By signature: it lives as long as its programs.
Texts = weakref.WeakKeyDictionary[Any, str]


class ChatAdapter(dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is not typed
    """Sends what `dspy.ChatAdapter` sends, to the letter."""

    def __init__(self) -> None:
        # A reply that does not parse is an error: the fallback would ask the model a second time.
        super().__init__(use_json_adapter_fallback=False)
        self._system: Texts = Texts()
        self._requirements: Texts = Texts()

    def format_system_message(self, signature: Any) -> str:
        return _once(self._system, signature, super().format_system_message)

    def user_message_output_requirements(self, signature: Any) -> str:
        return _once(self._requirements, signature, super().user_message_output_requirements)

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        names = [name for name in signature.input_fields if name in inputs]
        if not all(type(inputs[name]) is str for name in names):
            text: str = super().format_user_message_content(
                signature, inputs, prefix, suffix, main_request
            )
            return text
        # Text stands as it is; DSPy finds that out with a pydantic model made for each value.
        parts = [prefix, *(f"[[ ## {name} ## ]]\n{inputs[name]}" for name in names)]
        if main_request:
            parts.append(self.user_message_output_requirements(signature))
        return "\n\n".join([*parts, suffix]).strip()


def _once(known: Texts, signature: Any, make: Callable[[Any], str]) -> str:
    text = known.get(signature)
    if text is None:
        text = known[signature] = make(signature)
    return text


adapter = ChatAdapter()
