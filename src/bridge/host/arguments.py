"""Arguments of tools: JSON Schema and conversion, both from a parameter's annotation.

pydantic handles most types, msgspec those that pydantic refuses (msgspec's structs, and TypedDict
before Python 3.12). Both are loaded with the first tool.
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

LONGEST_VALUE = 60  # characters of a wrong value that an error message shows

Problems = list[str]


class Argument:
    """A parameter of a tool. Raises TypeError for an annotation that no JSON value can match.

    schema: its JSON Schema, with `default` if the parameter has a default.
    """

    def __init__(self, tool: str, parameter: inspect.Parameter) -> None:
        self.name = parameter.name
        self.is_required = parameter.default is parameter.empty
        annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
        try:
            self.schema, self._convert = _by_pydantic(annotation) or _by_msgspec(annotation)
        except (TypeError, ValueError, msgspec.ValidationError) as error:
            reason = str(error).partition("\n")[0]
            raise TypeError(f"tool {tool}: argument {self.name}: {reason}") from error
        if not self.is_required:
            self.schema["default"] = json_form(parameter.default)

    def convert(self, value: Any) -> tuple[Any, Problems]:
        """Return the value converted to the annotated type, and a line for each problem."""
        return self._convert(self.name, value)


Convert = Callable[[str, Any], tuple[Any, Problems]]


def schema_of(annotation: Any) -> dict[str, Any]:
    """Return the JSON Schema of values that match an annotation. Raises TypeError or ValueError if there is none."""
    return (_by_pydantic(annotation) or _by_msgspec(annotation))[0]


def _by_pydantic(annotation: Any) -> tuple[dict[str, Any], Convert] | None:
    """Return schema and conversion, or None for a type that pydantic does not support."""
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
    """Convert a JSON value strictly, except that numbers and booleans may be written as text."""
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
    expected: dict[tuple[str, str], list[str]] = {}  # by path and value
    problems = []
    for details in error.errors(include_url=False):
        path = _path(name, value, details)
        if details["type"] in ("missing", "missing_argument"):
            problems.append(f"argument {path!r} is missing")
        elif details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            problems.append(f"argument {path!r} is unknown")
        else:
            words = expected.setdefault((path, _shown(details["input"])), [])
            if (word := _expected(details)) not in words:
                words.append(word)
    for (path, given), words in expected.items():
        problems.append(f"argument {path!r}: {' or '.join(words)}, got {given}")
    return [problem.replace(" or expected ", " or ") for problem in problems]


def _path(name: str, value: Any, details: ErrorDetails) -> str:
    """Return the path of the wrong part of `value`, without the names of union members that pydantic puts into it."""
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


def _by_msgspec(annotation: Any) -> tuple[dict[str, Any], Convert]:
    """Return schema and conversion. Raises TypeError for a type that msgspec does not support either."""
    schema = msgspec.json.schema(annotation)

    def convert(name: str, value: Any) -> tuple[Any, Problems]:
        try:
            return msgspec.convert(value, annotation, strict=False), []
        except msgspec.ValidationError as error:
            text, _, path = str(error).partition(" - at `$")
            text = text.replace("`", "")
            problem = f"argument {name + path.rstrip('`')!r}: {text[:1].lower()}{text[1:]}"
            return None, [re.sub(r"\s+", " ", problem)]

    return schema, convert


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"


def json_form(default: Any) -> Any:
    """Return a default as a JSON value, or None if it has none."""
    from pydantic_core import to_jsonable_python

    try:
        return to_jsonable_python(default)
    except Exception:
        return None
