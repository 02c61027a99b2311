"""Arguments of tools: JSON Schema and conversion, both from a parameter's annotation.

pydantic knows the types, msgspec those that pydantic does not take (its own structs, and TypedDict
before Python 3.12). They are loaded with the first tool.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError
    from pydantic_core import ErrorDetails

LONGEST_VALUE = 60  # characters of a wrong value that are shown

Problems = list[str]


class Argument:
    """A parameter of a tool. Raises TypeError for annotations that no value of JSON fits.

    schema: its JSON Schema, with `default` if it has one.
    """

    def __init__(self, tool: str, parameter: inspect.Parameter) -> None:
        self.name = parameter.name
        self.is_required = parameter.default is parameter.empty
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        try:
            self.schema, self._convert = _of_pydantic(annotation) or _of_msgspec(annotation)
        except (TypeError, ValueError, msgspec.ValidationError) as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"tool {tool}: argument {self.name}: {reason}") from error
        if not self.is_required:
            self.schema["default"] = _json_form(parameter.default)

    def convert(self, value: Any) -> tuple[Any, Problems]:
        """Return the value of the annotated type, or a line on each thing that is wrong."""
        return self._convert(self.name, value)


Convert = Callable[[str, Any], tuple[Any, Problems]]


def _of_pydantic(annotation: Any) -> tuple[dict[str, Any], Convert] | None:
    """Schema and conversion; None for types that pydantic does not know."""
    import pydantic

    try:
        adapter: TypeAdapter[Any] = pydantic.TypeAdapter(annotation)
        schema = adapter.json_schema()
    except pydantic.errors.PydanticUserError:
        return None

    def convert(name: str, value: Any) -> tuple[Any, Problems]:
        try:
            return _validated(adapter, value), []
        except pydantic.ValidationError as error:
            return None, _problems(name, value, error)

    return schema, convert


def _validated(adapter: TypeAdapter[Any], value: Any) -> Any:
    """Take what JSON means by a value, and numbers and booleans that are written as text."""
    import pydantic

    try:
        text = json.dumps(value)
    except (TypeError, ValueError):  # bytes, arrays
        return adapter.validate_python(value)
    try:
        return adapter.validate_json(text, strict=True)
    except pydantic.ValidationError as error:
        if not all(_is_written_as_text(details) for details in error.errors()):
            raise
        return adapter.validate_python(value)


def _is_written_as_text(error: ErrorDetails) -> bool:
    given = error["input"]
    if error["type"] == "int_type" and isinstance(given, float):
        return given.is_integer()
    return isinstance(given, str) and error["type"] in _TYPES_WRITTEN_AS_TEXT


_TYPES_WRITTEN_AS_TEXT = ("int_type", "float_type", "bool_type", "none_required")


def _problems(name: str, value: Any, error: ValidationError) -> Problems:
    expected: dict[tuple[str, str], list[str]] = {}  # by place and what stands there
    problems = []
    for details in error.errors(include_url=False):
        place = _place(name, value, details)
        if details["type"] in ("missing", "missing_argument"):
            problems.append(f"argument {place!r} is missing")
        elif details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            problems.append(f"argument {place!r} is unknown")
        else:
            words = expected.setdefault((place, _shown(details["input"])), [])
            if (word := _expected(details)) not in words:
                words.append(word)
    for (place, given), words in expected.items():
        problems.append(f"argument {place!r}: {' or '.join(words)}, got {given}")
    return [problem.replace(" or expected ", " or ") for problem in problems]


def _place(name: str, value: Any, details: ErrorDetails) -> str:
    """Where in `value` it is wrong. Names of a union's members, which stand among the keys, are
    left out."""
    at: Any = value
    for index, key in enumerate(details["loc"]):
        is_last = index == len(details["loc"]) - 1
        if isinstance(at, list) and isinstance(key, int) and key < len(at):
            name, at = f"{name}[{key}]", at[key]
        elif isinstance(at, dict) and key in at:
            name, at = f"{name}.{key}", at[key]
        elif isinstance(at, dict) and is_last and details["type"] == "missing":
            name = f"{name}.{key}"
    return name


def _expected(details: ErrorDetails) -> str:
    kind = details["type"]
    if kind in ("enum", "literal_error"):
        return f"expected {details['ctx']['expected']}"
    for words, kinds in _WORDS.items():
        if kind in kinds:
            return f"expected {words}"
    words = details["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    words = words.removeprefix("Input ").partition("\n")[0]
    return words[:1].lower() + words[1:]


_WORDS = {
    "an integer": ("int_type", "int_parsing", "int_from_float", "int_parsing_size"),
    "a number": ("float_type", "float_parsing"),
    "a decimal number": ("decimal_type", "decimal_parsing"),
    "true or false": ("bool_type", "bool_parsing"),
    "text": ("string_type", "string_sub_type"),
    "bytes": ("bytes_type",),
    "null": ("none_required",),
    "a list": ("list_type", "tuple_type", "set_type", "frozen_set_type", "iterable_type"),
    "an object": (
        *("dict_type", "mapping_type", "dataclass_type", "dataclass_exact_type"),
        *("model_type", "model_attributes_type"),
    ),
    "a date (YYYY-MM-DD)": (
        *("date_type", "date_parsing", "date_from_datetime_parsing"),
        "date_from_datetime_inexact",
    ),
    "a date and time (YYYY-MM-DDTHH:MM:SS)": (
        *("datetime_type", "datetime_parsing", "datetime_from_date_parsing"),
        "datetime_object_invalid",
    ),
    "a time (HH:MM:SS)": ("time_type", "time_parsing"),
    "a duration (PT1H30M)": ("time_delta_type", "time_delta_parsing"),
    "a UUID": ("uuid_type", "uuid_parsing"),
    "a URL": ("url_type", "url_parsing"),
}


def _of_msgspec(annotation: Any) -> tuple[dict[str, Any], Convert]:
    """Schema and conversion. Raises TypeError for types that msgspec does not know either."""
    schema = msgspec.json.schema(annotation)

    def convert(name: str, value: Any) -> tuple[Any, Problems]:
        try:
            return msgspec.convert(value, annotation, strict=False), []
        except msgspec.ValidationError as error:
            text, _, place = str(error).partition(" - at `$")
            text = text.replace("`", "")
            problem = f"argument {name + place.rstrip('`')!r}: {text[:1].lower()}{text[1:]}"
            return None, [re.sub(r"\s+", " ", problem)]

    return schema, convert


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def _json_form(default: Any) -> Any:
    """A default as JSON has it; null for what has no form there."""
    from pydantic_core import to_jsonable_python

    try:
        return to_jsonable_python(default)
    except Exception:
        return None
