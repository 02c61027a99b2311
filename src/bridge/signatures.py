"""Signatures of programs from Python's type hints, for hosts. A worker with DSPy reads what `signature` returns."""

from __future__ import annotations

import datetime
import decimal
import enum
import inspect
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NewType, NotRequired, Union, get_args, get_origin

from typing_extensions import TypedDict  # pydantic refuses that of typing before Python 3.12

from bridge.host.arguments import json_form, schema_of

__all__ = ["Audio", "Code", "File", "History", "Image", "signature"]


class Image(TypedDict):
    """An image as the value of a field: bytes, or base64 as a text, and a type such as "image/png"."""

    data: bytes | str
    mime_type: NotRequired[str]
    filename: NotRequired[str]


class Audio(TypedDict):
    """A recording as the value of a field: bytes, or base64 as a text, and a type such as "audio/wav"."""

    data: bytes | str
    mime_type: NotRequired[str]
    filename: NotRequired[str]


class File(TypedDict):
    """A file as the value of a field: bytes, or base64 as a text, and a type such as "application/pdf"."""

    data: bytes | str
    mime_type: NotRequired[str]
    filename: NotRequired[str]


History = NewType("History", list[dict[str, Any]])  # the earlier turns of a conversation
Code = NewType("Code", str)  # source code in Python

Fields = Mapping[str, Any] | type

_PLAIN: dict[Any, str] = {
    str: "string",
    int: "integer",
    float: "float",
    bool: "boolean",
    Any: "any",
    None: "null",
    types.NoneType: "null",
    list: "list",
    dict: "dict",
    datetime.date: "date",
    datetime.time: "time",
    datetime.datetime: "datetime",
    decimal.Decimal: "decimal",
    uuid.UUID: "uuid",
    Image: "image",
    Audio: "audio",
    File: "file",
    History: "history",
    Code: "code",
}
_OWN_KEYS = ("description", "default", "prefix")


def signature(
    inputs: Fields | Callable[..., Any],
    outputs: Fields | None = None,
    *,
    description: str | None = None,
    name: str | None = None,
) -> dict[str, Any]:
    """Return a signature for `create_program`: of fields, or of a function that is never called.

    The inputs of a function are its parameters. Its outputs are the fields of the class that it returns, else one named
    "answer"; its docstring is the description.

    inputs, outputs: the type of each field by its name, or a class with annotations (a dataclass, a TypedDict, a
    pydantic model, …), whose defaults are those of the fields. A type is a hint, maybe `Annotated` with a description
    and constraints; or a worker's name of a type; or a map with one of these as `type`, and `description`, `default`
    and `prefix`. What has no name among a worker's types is sent as JSON Schema. description: the instructions for the
    model.
    Raises TypeError for a hint that no JSON value can match.
    """
    if outputs is not None:
        given, wanted = inputs, outputs
    elif callable(inputs) and not isinstance(inputs, type):
        given, wanted = _sides_of(inputs)
        name, description = name or getattr(inputs, "__name__", None), description or inspect.getdoc(inputs)
    else:
        raise TypeError("a signature has inputs and outputs, or is that of a function")
    sides: dict[str, Any] = {"inputs": _fields(given, "inputs"), "outputs": _fields(wanted, "outputs")}
    words = {"name": name, "description": description}
    return sides | {key: value for key, value in words.items() if value is not None}


def _sides_of(function: Callable[..., Any]) -> tuple[Fields, Fields]:
    """Return the inputs and the outputs that a function declares."""
    hints = typing.get_type_hints(function, include_extras=True)
    returned = hints.pop("return", str)
    inputs = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise TypeError(f"inputs: *{name}: a signature has a fixed number of inputs")
        hint = hints.get(name, str)
        has_default = parameter.default is not parameter.empty
        inputs[name] = {"type": hint, "default": json_form(parameter.default)} if has_default else hint
    has_fields = isinstance(returned, type) and returned not in _PLAIN and _members(returned)
    return inputs, returned if has_fields else {"answer": returned}


def _fields(given: Any, side: str) -> list[dict[str, Any]]:
    if isinstance(given, Mapping):
        return [{"name": name, **_field(f"{side}: {name}", hint)} for name, hint in given.items()]
    if not isinstance(given, type):
        raise TypeError(f"{side} must be a map from names to types, or a class with annotations, not {given!r}")
    hints = typing.get_type_hints(given, include_extras=True)
    for name, info in getattr(given, "model_fields", {}).items():  # of a pydantic model
        hints[name] = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
    members = _members(given)
    return [
        {"name": name, **_field(f"{side}: {name}", hint), **members.get(name, {})}
        for name, hint in hints.items()
        if get_origin(hint) is not typing.ClassVar
    ]


def _members(given: type) -> dict[str, dict[str, Any]]:
    """Return the descriptions and the defaults of the members of a class."""
    if hasattr(given, "_field_defaults"):  # of a NamedTuple, whose schema is that of a list
        return {name: {"default": json_form(value)} for name, value in given._field_defaults.items()}
    try:
        schema = schema_of(given)
    except TypeError:
        return {}
    schema = schema.get("$defs", {}).get(str(schema.get("$ref", "")).rpartition("/")[2], schema)
    properties: dict[str, Any] = schema.get("properties", {})
    return {
        name: {key: member[key] for key in ("description", "default") if key in member}
        for name, member in properties.items()
    }


def _field(where: str, hint: Any) -> dict[str, Any]:
    if isinstance(hint, Mapping):
        unknown = hint.keys() - {"type", *_OWN_KEYS}
        if unknown or "type" not in hint:
            raise TypeError(f"{where}: a field has a type, and maybe {', '.join(_OWN_KEYS)}, not {sorted(hint)}")
        return _field(where, hint["type"]) | {key: hint[key] for key in _OWN_KEYS if key in hint}
    described: dict[str, Any] = {}
    if get_origin(hint) is Annotated:
        base, *notes = get_args(hint)
        texts = [note for note in notes if isinstance(note, str)]
        others = tuple(note for note in notes if not isinstance(note, str))
        if texts:
            described["description"] = inspect.cleandoc(texts[0])
        hint = Annotated[(base, *others)] if others else base
    if (type_name := _name_of(hint)) is not None:
        return {"type": type_name, **described}
    try:
        schema = schema_of(hint)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{where}: {str(error).partition(chr(10))[0]}") from error
    if "description" in schema and "description" not in described and get_origin(hint) is Annotated:
        described["description"] = schema["description"]
    return {"json_schema": schema, **described}


def _name_of(hint: Any) -> str | None:
    """Return a worker's name of a type, None if it has none."""
    if isinstance(hint, str):
        return hint
    if (plain := _PLAIN.get(hint) if _is_hashable(hint) else None) is not None:
        return plain
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint])
    origin, members = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _choices(list(members))
    names = [_name_of(member) for member in members]
    if not names or None in names:
        return None
    if origin is list:
        return f"list<{names[0]}>"
    if origin is dict:
        return f"dict<{names[0]}, {names[1]}>"
    if origin in (Union, types.UnionType):
        return f"union<{'|'.join(map(str, names))}>"
    return None


def _choices(values: list[Any]) -> str | None:
    if not all(isinstance(value, str | int) for value in values):
        return None
    texts = [value for value in values if isinstance(value, str)]
    if any("\\" in text for text in texts):  # which a worker takes for an escape
        return None
    return f"enum<{'|'.join(map(_choice, values))}>"


def _choice(value: str | int) -> str:
    return '"{}"'.format(value.replace('"', '\\"')) if isinstance(value, str) else str(value).lower()


def _is_hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True
