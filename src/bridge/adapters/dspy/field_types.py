"""The types of fields, from what hosts declare: the name of a type, constraints on its values, a JSON Schema."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from functools import lru_cache
from types import NoneType
from typing import Any, get_args, get_origin

import msgspec

from bridge.adapters.dspy.schemas.constraints import KEYWORDS
from bridge.adapters.dspy.schemas.objects import Object, is_kind
from bridge.adapters.dspy.schemas.reading import MAX_SIZE, read_schema
from bridge.adapters.dspy.values.conversion import bare_type, is_union
from bridge.adapters.dspy.values.scalars import is_literal
from bridge.adapters.dspy.values.text_form import without_text_form
from bridge.adapters.type_names import Audio, Code, File, History, Image, Reasoning, TypeNameError, parse_type
from bridge.errors import InvalidArgs

MEDIA = (Image, Audio, File)
_SCALARS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    Any: {},
    NoneType: {"type": "null"},
    Decimal: {"type": "string", "format": "decimal"},
    datetime.date: {"type": "string", "format": "date"},
    datetime.datetime: {"type": "string", "format": "date-time"},
    datetime.time: {"type": "string", "format": "time"},
    uuid.UUID: {"type": "string", "format": "uuid"},
}
# Other names of keywords. min_length and max_length are about the characters, the items or the keys.
_SYNONYMS = {
    **dict.fromkeys(("ge", "min"), "minimum"),
    **dict.fromkeys(("le", "max"), "maximum"),
    **dict.fromkeys(("gt", "exclusive_minimum", "above"), "exclusiveMinimum"),
    **dict.fromkeys(("lt", "exclusive_maximum", "below"), "exclusiveMaximum"),
    **{"multiple_of": "multipleOf", "one_of": "enum", "unique_items": "uniqueItems"},
    **{"min_items": "minItems", "max_items": "maxItems"},
}
_SIZES = {
    "string": {"min_length": "minLength", "max_length": "maxLength"},
    "array": {"min_length": "minItems", "max_length": "maxItems"},
    "object": {"min_length": "minProperties", "max_length": "maxProperties"},
}


@lru_cache(maxsize=256)
def field_type(type_name: str, schema: str) -> Any:
    """Return the type of a field that has been checked. schema: its JSON Schema as text, or ""."""
    return read_schema(msgspec.json.decode(schema), "json_schema") if schema else parse_type(type_name)


def checked_type(type_name: str, path: str) -> Any:
    """Return the type of a name. Raises InvalidArgs."""
    try:
        return parse_type(type_name)
    except TypeNameError as error:
        raise InvalidArgs(f"{path}: {error}", path=path, expected="a type name") from None


def checked_schema(schema: Any, path: str) -> tuple[str, Any]:
    """Return the text of a JSON Schema, with sorted keys, and its type. Raises InvalidArgs."""
    unreadable = without_text_form(schema, path)
    if unreadable is not None:
        raise InvalidArgs(f"{unreadable[0]}: {unreadable[1]} is not JSON", path=unreadable[0])
    try:
        text = msgspec.json.encode(schema, order="sorted").decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgs(f"{path}: not JSON: {error}", path=path) from None
    if len(text) > MAX_SIZE:
        raise InvalidArgs(f"{path}: {len(text)} characters, the limit is {MAX_SIZE}", path=path)
    return text, read_schema(msgspec.json.decode(text), path)  # whose keys are texts


def check_same(named: Any, described: Any, path: str) -> None:
    """Raise InvalidArgs if the type that a field names is not that of its JSON Schema, which may say more."""
    shapes = [
        dict if is_kind(each, Object) else get_origin(each) or each for each in map(bare_type, (named, described))
    ]
    if named is not Any and shapes[0] is not shapes[1]:
        raise InvalidArgs(f"{path}: contradicts json_schema; leave it out", path=path)


def with_constraints(type: Any, constraints: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the JSON Schema of values of `type` that meet constraints. Raises InvalidArgs.

    type: of a type name. path: of the constraints.
    """
    members = [member for member in get_args(type) if member is not NoneType] if is_union(type) else []
    base = members[0] if len(members) == 1 else type
    schema = _schema_of(base)
    if schema is None:
        raise InvalidArgs(f"{path}: this type cannot have constraints; use json_schema", path=path)
    sizes = _SIZES.get(schema.get("type", ""), {})
    for name, bound in constraints.items():
        keyword = sizes.get(name) or _SYNONYMS.get(name, name)
        where = f"{path}.{name}"
        if keyword not in KEYWORDS and keyword not in ("enum", "const"):
            known = ", ".join(sorted({*KEYWORDS, *_SYNONYMS, *_SIZES["string"], "enum", "const"}))
            raise InvalidArgs(f"{where}: unknown constraint; known: {known}", path=where)
        if keyword in schema and keyword != "enum":
            raise InvalidArgs(f"{where}: {keyword} is given twice", path=where)
        schema[keyword] = bound
    checked_schema(schema, path)
    return schema if base is type else {"anyOf": [schema, {"type": "null"}]}


def _schema_of(type: Any) -> dict[str, Any] | None:
    """Return the JSON Schema of a type that a name can have, or None if it has none."""
    if type in _SCALARS:
        return dict(_SCALARS[type])
    if is_literal(type):
        return {"enum": list(get_args(type))}
    if is_union(type):
        parts = [_schema_of(member) for member in get_args(type)]
        return None if None in parts else {"anyOf": parts}
    if get_origin(type) is list:
        item = _schema_of(get_args(type)[0])
        return None if item is None else {"type": "array", "items": item}
    if get_origin(type) is dict and get_args(type)[0] is str:
        value = _schema_of(get_args(type)[1])
        return None if value is None else {"type": "object", "additionalProperties": value}
    return None


def media_of(type: Any) -> Any:
    """Return the type of media of a field: of one, of a list, or of none or one; None if the field has another type."""
    if get_origin(type) is list:
        type = get_args(type)[0]
    elif is_union(type) and len(get_args(type)) == 2 and NoneType in get_args(type):
        type = next(member for member in get_args(type) if member is not NoneType)
    return type if type in MEDIA else None


def check_place(type: Any, path: str, *, is_input: bool) -> None:
    """Raise InvalidArgs if a field on this side of a signature cannot have `type`."""
    parts = list(_parts(type))
    for part, words in ((Reasoning, "reasoning"), (History, "history")):
        if part in parts and type is not part:
            raise InvalidArgs(f"{path}: {words} cannot be part of another type", path=path)
    if any(part in MEDIA for part in parts) and media_of(type) is None:
        raise InvalidArgs(
            f"{path}: images, recordings and files are fields of their own, lists of them, or optional", path=path
        )
    if not is_input and (type is History or media_of(type) is not None):
        raise InvalidArgs(f"{path}: only inputs can have this type: models write text", path=path)
    if is_input and type is Reasoning:
        raise InvalidArgs(f"{path}: only outputs can have this type", path=path)


def _parts(type: Any) -> Any:
    """Yield a type that a name can have and all types in it."""
    yield type
    if not is_literal(type):
        for part in get_args(type):
            yield from _parts(part)


def is_plain_type(type: Any) -> bool:
    """Return whether pydantic knows `type`: a name has it, and it has no part of this adapter's own."""
    return not any(is_kind(part, Code) or part in (*MEDIA, History, Reasoning) for part in _parts(type))
