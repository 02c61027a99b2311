"""The JSON formats: prompts with sections, replies that are an object. `baml` describes its types more briefly."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.adapters.baml_adapter import BAMLAdapter

from bridge.adapters.dspy.formats import chat
from bridge.adapters.dspy.formats.brief_schema import with_brief_types
from bridge.adapters.dspy.formats.format import Format
from bridge.adapters.dspy.formats.response_schema import response_format
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.prompt_fields import LabelledSignature
from bridge.adapters.dspy.replies.json_object import JsonReply


class JsonFormat(Format, dspy.JSONAdapter):  # type: ignore[misc]  # DSPy is not typed
    """DSPy's `JSONAdapter`. Asks the provider for an object of the signature's JSON Schema if it can do that."""

    reply = JsonReply
    section = staticmethod(chat.section)
    escaped = staticmethod(chat.escaped)

    def output(self, field: Any, value: Any) -> Any:
        return value  # which is written as JSON

    def asks_for_text(self, lm: LanguageModel) -> bool:
        return super().asks_for_text(lm) and not (self.native and "response_format" in lm.features.params)

    def _prepare_response_format(self, lm: Any, lm_kwargs: dict[str, Any], signature: Any) -> None:
        if not self.native or "response_format" not in lm.supported_params:
            return
        if "response_format" in lm_kwargs or "response_format" in lm.kwargs:  # which somebody has chosen
            return
        formats = self._layout(signature).response_formats
        can = lm.supports_response_schema, lm.supports_function_calling
        if can not in formats:
            labelled = LabelledSignature(signature)
            formats[can] = response_format(labelled, with_schema=can[0], native_tools=can[1])
        lm_kwargs["response_format"] = formats[can]


class BamlFormat(JsonFormat, BAMLAdapter):  # type: ignore[misc]  # DSPy is not typed
    """DSPy's `BAMLAdapter`."""

    def format_field_structure(self, signature: Any) -> str:
        text: str = super().format_field_structure(with_brief_types(signature))
        return text
