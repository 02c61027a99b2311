"""Conversations that hosts send, as DSPy's history: the fields of each earlier turn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bridge import errors
from bridge.adapters.dspy.signatures import Field

Fields = Mapping[str, tuple[Field, Callable[[Any, str], Any]]]
_ROLES = ("user", "assistant")


class HistoryCheck:
    """Checks the values of a history. fields: the other fields of the signature, by name, with their checks."""

    def __init__(self, name: str, inputs: Fields, outputs: Fields) -> None:
        self._name = name
        self._inputs = inputs
        self._fields = {**inputs, **outputs}
        self._pair = [[name for name, (field, _) in side.items() if field.type is str] for side in (inputs, outputs)]

    def value(self, value: Any, parent: str = "args.inputs") -> Any:
        """Return `value` as DSPy's history. Raises InvalidArgs with the path of what is wrong.

        It is a list of turns: each a map of values for fields, or, if the signature has one text input and one text
        output, pairs of {role: "user", content} and {role: "assistant", content}.
        """
        path = f"{parent}.{self._name}"
        if isinstance(value, dict) and value.keys() == {"messages"}:
            value, path = value["messages"], f"{path}.messages"
        turns = [] if value is None else value
        if not isinstance(turns, list):
            raise _invalid(path, "expected a list of turns")
        for index, turn in enumerate(turns):
            if not isinstance(turn, dict) or not turn:
                raise _invalid(f"{path}[{index}]", "expected a map with values of fields, or with role and content")
        if turns and all(turn.keys() == {"role", "content"} for turn in turns) and "role" not in self._fields:
            messages = self._of_roles(turns, path)
        else:
            messages = [self._turn(turn, f"{path}[{index}]") for index, turn in enumerate(turns)]
        from bridge.adapters.dspy.native_types import Conversation  # checks work without DSPy

        return Conversation.of(messages, {field.python_name: name for name, (field, _) in self._fields.items()})

    def accepts_none(self) -> bool:
        """Return whether the history may be left out: a conversation that begins has none."""
        return True

    def _turn(self, turn: dict[str, Any], path: str) -> dict[str, Any]:
        unknown = [name for name in turn if name not in self._fields]
        if unknown:
            declared = ", ".join(self._fields)
            raise _invalid(f"{path}.{unknown[0]}", f"not a field of the signature; its fields: {declared}")
        checked = {}
        for name, value in turn.items():
            field, check = self._fields[name]
            checked[field.python_name] = check(value, path)
        return checked

    def _of_roles(self, messages: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
        """Return messages with roles as turns."""
        inputs, outputs = self._pair
        if len(inputs) != 1 or len(outputs) != 1:
            reason = (
                "role and content need a signature with one text input and one text output; send the values of"
                f" the fields: {', '.join(self._fields)}"
            )
            raise _invalid(path, reason)
        for index, message in enumerate(messages):
            expected = _ROLES[index % 2]
            if message["role"] != expected:
                raise _invalid(f"{path}[{index}].role", f"expected {expected!r}: user and assistant take turns")
            if not isinstance(message["content"], str):
                raise _invalid(f"{path}[{index}].content", "expected text")
        if len(messages) % 2:
            raise _invalid(f"{path}[{len(messages) - 1}]", "the last message must be the assistant's")
        texts = [message["content"] for message in messages]
        pairs = zip(texts[::2], texts[1::2], strict=True)
        return [
            self._turn({inputs[0]: asked, outputs[0]: answered}, f"{path}[{2 * index}]")
            for index, (asked, answered) in enumerate(pairs)
        ]


def _invalid(path: str, reason: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {reason}", path=path, expected="history")
