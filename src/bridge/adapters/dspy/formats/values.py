"""Values of inputs as the text of prompts, in which nothing can be mistaken for DSPy's marks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import dspy
from dspy.adapters.types.base_type import CUSTOM_TYPE_END_IDENTIFIER, CUSTOM_TYPE_START_IDENTIFIER
from dspy.adapters.utils import format_field_value, serialize_for_json

MARK = CUSTOM_TYPE_START_IDENTIFIER


class Formatted(str):
    """Text that a format has written: its structure belongs to the format, not to a value."""


def value_text(field: Any, value: Any, escaped: Callable[[str], str]) -> str:
    """Return the text of `value`. escaped: returns a text without what the format uses as structure."""
    if isinstance(value, Formatted):
        return value
    # DSPy would create a pydantic model for each text.
    if type(value) is str:
        text = value
    elif isinstance(value, dspy.Type):
        return _content(field, value, escaped)
    elif type(value) is list and not (value and all(type(item) is str for item in value)):
        if value and all(isinstance(item, dspy.Type) for item in value):
            return "\n".join(_content(field, item, escaped) for item in value)
        # If the field is text, as the result of a tool is, DSPy takes every list for a list of texts.
        text = json.dumps(serialize_for_json(value), ensure_ascii=False)
    else:
        text = format_field_value(field, value)
    return escaped(without_marks(text))


def without_marks(text: str) -> str:
    """Return `text` without the marks between which DSPy reads content parts, such as URLs to be fetched."""
    return text.replace("<<CUSTOM-TYPE-", "< <CUSTOM-TYPE-")


def _content(field: Any, value: dspy.Type, escaped: Callable[[str], str]) -> str:
    """Return an image, a file or other content of a module of the operator, between DSPy's marks if it needs them."""
    parts = value.format()
    if isinstance(parts, str):
        return escaped(without_marks(parts))
    if not isinstance(parts, list):
        return escaped(without_marks(format_field_value(field, value)))
    text = without_marks(json.dumps(parts, ensure_ascii=False))
    return f"{CUSTOM_TYPE_START_IDENTIFIER}{text}{CUSTOM_TYPE_END_IDENTIFIER}"
