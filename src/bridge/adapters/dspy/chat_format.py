"""DSPy's chat format: writes prompts in which no value is taken for structure, and reads replies.

What depends on the signature only is determined once for each signature. DSPy does that for every call, which takes a
third of the call's time.
"""

from __future__ import annotations

import asyncio
import json
import re
import weakref
from typing import Any

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import (
    apply_output_field_defaults,
    format_field_value,
    serialize_for_json,
)

from bridge.adapters.dspy.current_run import ModelCall, current_call, current_run
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.prompt_fields import LabelledSignature, Layout
from bridge.adapters.dspy.reply_reader import read_fields, well_formed_in
from bridge.adapters.dspy.values.outputs import read_value

_HEADER = re.compile(r"^([ \t]*\[)(?=\[ ## \w+ ## \]\])", re.MULTILINE)


class Formatted(str):
    """Text written by `ChatAdapter`: its headers belong to the format, not to a value."""


class ChatAdapter(dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is not typed
    """Writes what `dspy.ChatAdapter` writes, but escapes what DSPy or a model would take for structure in a value.

    That is DSPy's marks of images and files, and the headers of fields.
    """

    def __init__(self) -> None:
        # The fallback would send a second request to the model if a reply cannot be read.
        super().__init__(use_json_adapter_fallback=False)
        self._layouts: weakref.WeakKeyDictionary[Any, Layout] = weakref.WeakKeyDictionary()

    def __call__(
        self,
        lm: Any,
        lm_kwargs: dict[str, Any],
        signature: Any,
        demos: list[dict[str, Any]],
        inputs: dict[str, Any],
    ) -> list[dict[str, Any]]:
        run = current_run.get()
        if run is None:
            return self._answered(lm, lm_kwargs, signature, demos, inputs)
        call = ModelCall(run, tuple(self._layout(signature).outputs))
        token = current_call.set(call)
        try:
            values = self._answered(lm, lm_kwargs, signature, demos, inputs)
        except dspy.DSPyError as error:
            error.model_call = call
            raise
        finally:
            current_call.reset(token)
        call.cache_responses()
        return values

    async def acall(self, *args: Any, **kwargs: Any) -> list[dict[str, Any]]:
        """Call this on another thread: engines are not asynchronous."""
        return await asyncio.to_thread(self, *args, **kwargs)

    def format_system_message(self, signature: Any) -> str:
        layout = self._layout(signature)
        if layout.system is None:
            layout.system = super().format_system_message(LabelledSignature(signature))
        return layout.system

    def user_message_output_requirements(self, signature: Any) -> str:
        layout = self._layout(signature)
        if layout.requirements is None:
            layout.requirements = super().user_message_output_requirements(LabelledSignature(signature))
        return layout.requirements

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: Any = None
    ) -> str:
        fields = signature.output_fields
        values = {  # of demos and of earlier turns
            label: _value_text(fields[name], outputs[name])
            for label, (name, _) in self._layout(signature).outputs.items()
            if name in outputs
        }
        text: str = super().format_assistant_message_content(
            LabelledSignature(signature), values, missing_field_message
        )
        return text

    def format_user_message_content(
        self,
        signature: Any,
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """Return a message with values: inputs, results of tools, examples. No other method writes values."""
        parts = [prefix]
        for name, header, field in self._layout(signature).inputs:
            if name in inputs:
                parts.append(f"{header}\n{_value_text(field, inputs[name])}")
        if main_request:
            parts.append(_without_marks(self.user_message_output_requirements(signature)))
        return Formatted("\n\n".join([*parts, suffix]).strip())

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return self._read(signature, completion)

    def _read(self, signature: Any, reply: str) -> dict[str, Any]:
        """Return the values of all output fields: `parse` without the callbacks that DSPy adds to it."""
        outputs = self._layout(signature).outputs
        fields: dict[str, Any] = {}
        for label, text in read_fields(reply, outputs).texts.items():
            name, annotation = outputs[label]
            try:
                value = read_value(text, annotation)
                # An escape sequence of JSON can be half of a surrogate pair.
                fields[name] = well_formed_in(value) if "\\u" in text else value
            except Exception as error:  # any parser may fail, and the text may be anything
                raise _unreadable(signature, reply, label, error) from error
        names = [name for name, _ in outputs.values()]
        if [*fields] != names:
            fields = apply_output_field_defaults(signature, fields)
        if not reply or [*fields] != names:
            raise dspy.AdapterParseError(type(self).__name__, signature, reply)
        return fields

    def _answered(
        self, lm: Any, lm_kwargs: dict[str, Any], signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Return the values of the model's answer. Ask the model directly if possible, otherwise through DSPy."""
        if self._layout(signature).is_plain and isinstance(lm, LanguageModel) and not self.callbacks:
            messages = self._messages(signature, demos, inputs)
            if not any(CUSTOM_TYPE_START_IDENTIFIER in text for _, text in messages):
                reply = lm.ask(messages, lm_kwargs)
                if reply is not None:
                    return [self._read(signature, reply)]
        values: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)
        return values

    def _messages(self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]) -> list[tuple[str, str]]:
        """Return what `format` returns, as (role, text), for a signature that is plain."""
        return [
            ("system", self.format_system_message(signature)),
            *((message["role"], message["content"]) for message in self.format_demos(signature, demos)),
            ("user", self.format_user_message_content(signature, inputs, main_request=True)),
        ]

    def _layout(self, signature: Any) -> Layout:
        layout = self._layouts.get(signature)
        if layout is None or layout.instructions is not signature.__doc__:  # which a module may replace
            layout = self._layouts[signature] = Layout(signature, self.native_response_types)
        return layout


def _value_text(field: Any, value: Any) -> str:
    if isinstance(value, Formatted):
        return value
    # DSPy would create a pydantic model for each text.
    if type(value) is str:
        text = value
    elif isinstance(value, dspy.Type):
        return _content(field, value)
    elif type(value) is list and not (value and all(type(item) is str for item in value)):
        if value and all(isinstance(item, dspy.Type) for item in value):
            return "\n".join(_content(field, item) for item in value)
        # If the field is text, as the result of a tool is, DSPy takes every list for a list of texts.
        text = json.dumps(serialize_for_json(value), ensure_ascii=False)
    else:
        text = format_field_value(field, value)
    return _escaped(text)


def _content(field: Any, value: dspy.Type) -> str:
    """Return an image, a file or other content of a module of the operator, between DSPy's marks if it needs them."""
    parts = value.format()
    if isinstance(parts, str):
        return _escaped(parts)
    if not isinstance(parts, list):
        return _escaped(format_field_value(field, value))
    text = _without_marks(json.dumps(parts, ensure_ascii=False))
    return f"{CUSTOM_TYPE_START_IDENTIFIER}{text}{CUSTOM_TYPE_END_IDENTIFIER}"


def _escaped(text: str) -> str:
    text = _without_marks(text)
    return _HEADER.sub(r"\1 ", text) if "[[ ## " in text else text


def _without_marks(text: str) -> str:
    # Between these marks DSPy would read content parts, and the provider would fetch what a text names.
    return text.replace("<<CUSTOM-TYPE-", "< <CUSTOM-TYPE-")


def _unreadable(signature: Any, reply: str, label: str, error: Exception) -> dspy.AdapterParseError:
    reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    failure = dspy.AdapterParseError("ChatAdapter", signature, reply)
    failure.field, failure.reason, failure.cause = label, reason, error
    return failure


adapter = ChatAdapter()
