"""DSPy's chat format: prompts in which values stay text, replies read as they are streamed.

What depends on the signature alone is made once a signature: DSPy makes it anew for each call,
which is a third of what a call of it costs.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from typing import Any

import dspy
from dspy.adapters.utils import (
    apply_output_field_defaults,
    format_field_value,
    serialize_for_json,
)

from bridge.adapters.dspy import supervised_engine
from bridge.adapters.dspy.field_values import read_value
from bridge.adapters.dspy.prompt_fields import Labelled, label_of, labelled
from bridge.adapters.dspy.reply_reader import read_fields, well_formed_in

# By signature: it lives as long as its programs.
Texts = weakref.WeakKeyDictionary[Any, str]

_HEADER = re.compile(r"^([ \t]*\[)(?=\[ ## \w+ ## \]\])", re.MULTILINE)


class Formatted(str):
    """Text in the chat format, made by `ChatAdapter`: its headers are no part of any value."""


class ChatAdapter(dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is not typed
    """Sends what `dspy.ChatAdapter` sends, except where a value holds what DSPy or a model would
    take for structure: its marks for images and files, or the header of a field."""

    def __init__(self) -> None:
        # A reply that does not parse is an error: the fallback would ask the model a second time.
        super().__init__(use_json_adapter_fallback=False)
        self._system: Texts = Texts()
        self._requirements: Texts = Texts()

    def __call__(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: Any,
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        run = supervised_engine.running.get()
        if run is not None:
            run.fields = tuple(labelled(signature.output_fields))
        values: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)
        return values

    def format_system_message(self, signature: Any) -> str:
        format = super().format_system_message
        return _once(self._system, signature, lambda: format(Labelled(signature)))

    def user_message_output_requirements(self, signature: Any) -> str:
        format = super().user_message_output_requirements
        return _once(self._requirements, signature, lambda: format(Labelled(signature)))

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: Any = None
    ) -> str:
        values = {
            label_of(name, field): outputs[name] for name, field in signature.output_fields.items() if name in outputs
        }
        text: str = super().format_assistant_message_content(Labelled(signature), values, missing_field_message)
        return text

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Every value that reaches a prompt passes here: inputs, tool results, examples."""
        parts = [prefix]
        for name, field in signature.input_fields.items():
            if name in inputs:
                parts.append(f"[[ ## {label_of(name, field)} ## ]]\n{_value_text(field, inputs[name])}")
        if main_request:
            parts.append(self.user_message_output_requirements(signature))
        text = "\n\n".join([*parts, suffix]).strip()
        # DSPy makes content parts of what stands between its marks, so that the provider would
        # fetch what a text names. No type of a signature has a value that needs them.
        return Formatted(text.replace("<<CUSTOM-TYPE-", "< <CUSTOM-TYPE-"))

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        names = {label_of(name, field): name for name, field in signature.output_fields.items()}
        for label, text in read_fields(completion, names).texts.items():
            name = names[label]
            try:
                value = read_value(text, signature.output_fields[name].annotation)
                # JSON can spell half a character though the text has none.
                fields[name] = well_formed_in(value) if "\\u" in text else value
            except Exception as error:  # of several parsers, on text that anybody may have written
                raise _unreadable(signature, completion, label, error) from error
        fields = apply_output_field_defaults(signature, fields)
        if fields.keys() != signature.output_fields.keys():
            raise dspy.AdapterParseError(type(self).__name__, signature, completion)
        return fields


def _value_text(field: Any, value: Any) -> str:
    if isinstance(value, Formatted):
        return value
    # DSPy finds out that a text is one with a pydantic model made for each value.
    if type(value) is str:
        text = value
    elif type(value) is list and not (value and all(type(item) is str for item in value)):
        # Where the field is text, as a tool's result is, DSPy takes every list for one of texts.
        text = json.dumps(serialize_for_json(value), ensure_ascii=False)
    else:
        text = format_field_value(field, value)
    return _HEADER.sub(r"\1 ", text)


def _unreadable(signature: Any, reply: str, label: str, error: Exception) -> dspy.AdapterParseError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    failure = dspy.AdapterParseError("ChatAdapter", signature, reply)
    failure.field, failure.reason = label, reason
    return failure


def _once(known: Texts, signature: Any, make: Callable[[], str]) -> str:
    text = known.get(signature)
    if text is None:
        text = known[signature] = make()
    return text


adapter = ChatAdapter()
