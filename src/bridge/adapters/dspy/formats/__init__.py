"""The formats of prompts and replies, which DSPy calls adapters. A new format is one row of `FORMATS`.

From the bottom up: values (values as text), format (what all of them share), response_schema, and the formats.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from bridge.adapters.dspy.format_choice import FormatChoice
from bridge.adapters.dspy.formats.chat import ChatFormat
from bridge.adapters.dspy.formats.format import Format
from bridge.adapters.dspy.formats.json_object import BamlFormat, JsonFormat
from bridge.adapters.dspy.formats.two_step import TwoStepFormat
from bridge.adapters.dspy.formats.xml import XmlFormat

# The names are those of format_choice.NAMES.
FORMATS: dict[str, Callable[..., Format]] = {
    "chat": ChatFormat,
    "json": JsonFormat,
    "xml": XmlFormat,
    "two_step": TwoStepFormat,
    "baml": BamlFormat,
}


def format_of(choice: FormatChoice | None, lm: Any) -> Format:
    """Return the format for a run, the chat format if none was chosen.

    lm: the model that extracts the fields if the format has two steps.
    """
    choice = choice or FormatChoice()
    if choice.name == "two_step":
        return _create(choice, lm=lm)
    return _shared(choice)


def _create(choice: FormatChoice, **more: Any) -> Format:
    fallback = None if choice.fallback is None else FORMATS[choice.fallback](native=choice.native)
    return FORMATS[choice.name](native=choice.native, fallback=fallback, **more)


_shared = lru_cache(maxsize=32)(_create)
