"""Values of any type for tests: for output fields by their types, for arguments of tools by their JSON Schemas.

Equal seeds give equal values.
"""

from __future__ import annotations

import datetime
import decimal
import types
import uuid
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin

from bridge.adapters.dspy.schemas.constraints import unconstrained
from bridge.adapters.dspy.schemas.objects import Items, Named, Object, is_kind, target_of

DAY = datetime.date(2000, 1, 1)


def value_of(type: Any, name: str, seed: int) -> Any:
    """Return a value of the type of a field. seed: below 1000. It meets simple constraints; a test sets the others."""
    type, constraints = unconstrained(target_of(type))
    bounds = {each.keyword: each.bound for each in constraints}
    if is_kind(type, Object):
        required = {key: each.type for key, each in type.properties.items() if each.is_required}
        return {key: value_of(each, key, seed) for key, each in required.items()}
    if is_kind(type, Items):
        return [value_of(each, name, seed) for each in type.first]
    origin, members = get_origin(type), get_args(type)
    if origin is Literal:
        return members[seed % len(members)]
    if origin in (Union, types.UnionType):
        return value_of(next((each for each in members if each is not types.NoneType), None), name, seed)
    if origin is list:
        is_recursive = is_kind(members[0], Named)
        return [value_of(members[0], name, seed)] * bounds.get("minItems", 0 if is_recursive else 1)
    if origin is dict:
        return {value_of(members[0], "key", seed): value_of(members[1], name, seed)}
    value = _SCALARS.get(type, _text)(name, seed)
    if isinstance(value, str):
        return value[: bounds.get("maxLength")].ljust(bounds.get("minLength", 0), "x")
    if bounds.keys() & {"minimum", "maximum"}:
        return min(max(value, bounds.get("minimum", value)), bounds.get("maximum", value))
    return value


def _text(name: str, seed: int) -> str:
    return f"mock_{name}_{seed}"


_SCALARS: dict[Any, Callable[[str, int], Any]] = {
    None: lambda name, seed: None,
    types.NoneType: lambda name, seed: None,
    bool: lambda name, seed: seed % 2 == 0,
    int: lambda name, seed: seed,
    float: lambda name, seed: seed / 1000,  # from 0 to 1, because it may be a probability
    decimal.Decimal: lambda name, seed: decimal.Decimal(seed).scaleb(-1),
    datetime.date: lambda name, seed: DAY + datetime.timedelta(days=seed),
    datetime.time: lambda name, seed: datetime.time(seed // 60, seed % 60),
    datetime.datetime: lambda name, seed: datetime.datetime(2000, 1, 1, seed // 60, seed % 60),
    uuid.UUID: lambda name, seed: uuid.UUID(int=seed),
}


def argument_of(schema: Any, name: str, root: Any = None) -> Any:
    """Return a value for an argument of a tool, or for a field with a JSON Schema. It fits simple schemas; a test sets
    the others.

    root: the whole schema, to which references refer.
    """
    if not isinstance(schema, dict):
        return _text(name, 0)
    root = schema if root is None else root
    if isinstance(reference := schema.get("$ref"), str):
        definition = root.get("$defs", {}).get(reference.rpartition("/")[2], {})
        return argument_of(definition, name, root)
    for key in ("const", "default"):
        if key in schema:
            return schema[key]
    for key in ("enum", "examples"):
        if schema.get(key):
            return schema[key][0]
    for key in ("anyOf", "oneOf", "allOf"):
        if parts := schema.get(key):
            return argument_of(parts[0], name, root)
    kind = schema.get("type", "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        return [argument_of(schema.get("items", {}), name, root)] * max(1, schema.get("minItems", 1))
    if kind == "object":
        properties: dict[str, Any] = schema.get("properties", {})
        required: list[str] = schema.get("required", [*properties])
        return {key: argument_of(properties.get(key, {}), key, root) for key in required}
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("maximum", 1))
    if kind == "string":
        text = _FORMATS.get(schema.get("format", ""), _text(name, 0))
        return text[: schema.get("maxLength", len(text))]
    return None if kind == "null" else True


_FORMATS = {
    "date": "2000-01-01",
    "date-time": "2000-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "uuid": str(uuid.UUID(int=0)),
    "email": "mock@example.com",
    "uri": "https://example.com",
}
