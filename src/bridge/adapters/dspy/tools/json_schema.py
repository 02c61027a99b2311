"""Reads JSON Schemas: which members an object has, through references and compositions, and what a schema refers to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

MAX_SCHEMAS = 200  # that one schema of an object is composed of
_COMPOSITIONS = ("allOf", "anyOf", "oneOf")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
DEFINITIONS = ("$defs", "definitions")
_NAMED = ("properties", "patternProperties", "dependentSchemas", *DEFINITIONS)  # maps of schemas
_SINGLE = ("items", "additionalProperties", "propertyNames", "contains", "not")


def is_object_schema(args: dict[str, Any]) -> bool:
    """Return whether `args` is a schema of the object of all arguments, not a map from their names to schemas."""
    kind = args.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        return True
    if isinstance(args.get("$ref"), str) or isinstance(args.get("additionalProperties"), bool):
        return True
    if any(isinstance(args.get(key), list) for key in (*_COMPOSITIONS, "required")):
        return True
    properties = args.get("properties")
    return isinstance(properties, dict) and all(isinstance(schema, dict | bool) for schema in properties.values())


class Members(NamedTuple):
    """The members of an object. is_open: whether it may have other members than `properties`."""

    properties: dict[str, Any]
    required: frozenset[str]
    is_open: bool


_NONE = Members({}, frozenset(), False)


def members_of(schema: dict[str, Any]) -> Members:
    """Return the members of the object that `schema` describes, through references and compositions."""
    return _members(schema, schema, {})


def _members(schema: Any, root: dict[str, Any], known: dict[int, Members]) -> Members:
    """Return the members that `schema`, a part of `root`, describes.

    known: those of schemas that were read, by id. Each is read once, even if references are circular.
    """
    if not isinstance(schema, dict):
        return _NONE
    if id(schema) in known:
        return known[id(schema)]
    if len(known) >= MAX_SCHEMAS:
        return _NONE
    known[id(schema)] = _NONE  # while it is read
    found = schema.get("properties")
    properties = {
        name: ({} if each is True else {"not": {}} if each is False else each)
        for name, each in (found.items() if isinstance(found, dict) else ())
    }
    required = {each for each in _listed(schema.get("required")) if isinstance(each, str)}
    is_open = schema.get("additionalProperties", False) is not False
    is_open = is_open or bool(schema.get("patternProperties"))
    parts = [_target(schema["$ref"], root)] if isinstance(schema.get("$ref"), str) else []
    for part in [*parts, *_listed(schema.get("allOf"))]:
        more = _members(part, root, known)
        properties = more.properties | properties
        required, is_open = required | more.required, is_open or more.is_open
    for key in ("anyOf", "oneOf"):
        choices = [_members(choice, root, known) for choice in _listed(schema.get(key))]
        for more in choices:
            properties, is_open = more.properties | properties, is_open or more.is_open
        if choices:
            required |= frozenset.intersection(*(more.required for more in choices))
    known[id(schema)] = Members(properties, frozenset(required), is_open)
    return known[id(schema)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _target(reference: str, root: dict[str, Any]) -> Any:
    """Return the part of `root` that `reference` (#/$defs/Name) means; None if there is none."""
    current: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        current = current.get(key) if isinstance(current, dict) else None
    return current


def references(schema: Any) -> Iterator[str]:
    """Yield all references in `schema`."""
    waiting = [schema]
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict):
            for key in _REFERENCES:
                if isinstance(current.get(key), str):
                    yield current[key]
            waiting += current.values()
        elif isinstance(current, list):
            waiting += current


def is_larger(schema: Any, limit: int) -> bool:
    """Return whether there are more than `limit` maps and lists in `schema`."""
    waiting, count = [schema], 0
    while waiting:
        current = waiting.pop()
        if isinstance(current, dict | list | tuple):
            count += 1
            waiting += current.values() if isinstance(current, dict) else current
            if count > limit:
                return True
    return False


def with_maps(args: dict[str, Any]) -> dict[str, Any]:
    """Return `args` with an empty map in place of each empty list where only a schema or a map of schemas is valid.

    Hosts in Elixir and PHP write an empty map as an empty list. Changes `args`.
    """
    for name in _NAMED:
        if args.get(name) == []:
            args[name] = {}
    if not is_object_schema(args):
        args = {name: {} if schema == [] else schema for name, schema in args.items()}
    waiting = [args, *args.values()]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, list):
            schema[:] = [{} if each == [] else each for each in schema]
            waiting += schema
            continue
        if not isinstance(schema, dict):
            continue
        for name in (*_NAMED, *_SINGLE):
            if schema.get(name) == []:
                schema[name] = {}
        for name in _NAMED:
            named = schema.get(name)
            if isinstance(named, dict):
                named.update((key, {}) for key, each in named.items() if each == [])
                waiting += named.values()
        waiting += [schema[name] for name in (*_SINGLE, *_COMPOSITIONS) if name in schema]
    return args
