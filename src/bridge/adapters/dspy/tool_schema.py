"""The JSON Schema of a tool's arguments: in either form that hosts write, as one object schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from bridge import errors

MAX_MESSAGE = 200  # characters of what is wrong with an argument
MAX_SCHEMAS = 200  # that are composed to one of the arguments
_COMPOSITIONS = ("allOf", "anyOf", "oneOf")
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
_DEFINITIONS = ("$defs", "definitions")
_NAMED = ("properties", "patternProperties", "dependentSchemas", *_DEFINITIONS)  # maps of schemas
_SINGLE = ("items", "additionalProperties", "propertyNames", "contains", "not")


class ToolSchema(msgspec.Struct, frozen=True):
    """properties: the schema of each argument, with the definitions that it refers to. required:
    the arguments that a call must have. is_open: whether it may have others. whole: the schema of
    the object that holds them all."""

    properties: dict[str, Any]
    required: frozenset[str]
    is_open: bool
    whole: dict[str, Any]

    @classmethod
    def of(cls, args: dict[str, Any]) -> ToolSchema:
        """Return the schema of a tool's `args`: an object schema, or a schema of each argument
        by name."""
        if not _is_object_schema(args):
            needed = frozenset(name for name, schema in args.items() if not _has_default(schema))
            whole = {"type": "object", "properties": args, "required": sorted(needed)}
            return cls(args, needed, False, whole)
        properties, required, is_open = _arguments(args, args, {})
        definitions = {key: args[key] for key in _DEFINITIONS if key in args}
        shown = {name: {**schema, **definitions} if _refers(schema) else schema for name, schema in properties.items()}
        return cls(shown, required, is_open, args)

    def check(self, path: str) -> None:
        """Raise InvalidArgs where it is no JSON Schema, or refers to something outside of it."""
        for reference in _references(self.whole):
            if not reference.startswith("#"):
                raise errors.InvalidArgs(
                    f"{path}: a reference to {reference[:100]!r}: only those within the schema"
                    " (#/$defs/…) are followed",
                    path=path,
                )
        wrong = [name for name, schema in self.properties.items() if not isinstance(schema, dict)]
        if wrong:
            raise errors.InvalidArgs(f"{path}: not a JSON Schema for each argument: {wrong[0]}", path=path)
        # Imported here because sessions without tools do without it.
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        if not isinstance(self.whole.get("$schema", ""), str):
            raise errors.InvalidArgs(f"{path}: no JSON Schema: $schema: expected a URL", path=path)
        try:
            validator_for(self.whole).check_schema(self.whole)
        except SchemaError as error:
            place = "".join(f".{part}" for part in error.absolute_path)
            raise errors.InvalidArgs(
                f"{path}: no JSON Schema: {place[1:]}: {error.message[:MAX_MESSAGE]}", path=path
            ) from None
        except RecursionError:
            raise errors.InvalidArgs(f"{path}: no JSON Schema: nested too deeply", path=path) from None

    def wrong(self, arguments: dict[str, Any]) -> str:
        """Return what is wrong with the arguments of a call, in one line; empty where nothing
        is."""
        unknown = [name for name in arguments if name not in self.properties]
        missing = sorted(self.required - arguments.keys())
        if unknown and not self.is_open:
            return f"has no argument {', '.join(unknown)}"
        if missing:
            return f"needs the argument {', '.join(missing)}"
        from jsonschema.exceptions import best_match
        from jsonschema.validators import validator_for

        try:
            error = best_match(validator_for(self.whole)(self.whole).iter_errors(arguments))
        except Exception:
            # A reference that leads nowhere or in a circle, a number too large to be divided: the
            # host looks at its arguments itself.
            return ""
        if error is None:
            return ""
        place = ".".join(map(str, error.absolute_path)) or "the arguments"
        return f"cannot take {place}: {' '.join(error.message.split())[:MAX_MESSAGE]}"


def with_maps(args: dict[str, Any]) -> dict[str, Any]:
    """Return `args` with an empty map for each empty list that stands where a schema, or a map of
    schemas, belongs: hosts in Elixir and PHP write an empty map so. Changes `args`."""
    for name in _NAMED:
        if args.get(name) == []:
            args[name] = {}
    if not _is_object_schema(args):
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


def _is_object_schema(args: dict[str, Any]) -> bool:
    """Whether it is a schema of all arguments; by-name schemas are maps, whatever their names."""
    kind = args.get("type")
    if kind == "object" or (isinstance(kind, list) and "object" in kind):
        return True
    if isinstance(args.get("$ref"), str) or isinstance(args.get("additionalProperties"), bool):
        return True
    if any(isinstance(args.get(key), list) for key in (*_COMPOSITIONS, "required")):
        return True
    properties = args.get("properties")
    return isinstance(properties, dict) and all(isinstance(schema, dict | bool) for schema in properties.values())


class _Arguments(NamedTuple):
    """What a schema says of an object's members: properties, required, whether there may be
    others."""

    properties: dict[str, Any]
    required: frozenset[str]
    is_open: bool


_NONE = _Arguments({}, frozenset(), False)


def _arguments(schema: Any, root: dict[str, Any], known: dict[int, _Arguments]) -> _Arguments:
    """Return what `schema` says of an object's members, through references and compositions.
    known: by id of a schema; each is looked at once, however often and in whatever circle it is
    referred to."""
    if not isinstance(schema, dict):
        return _NONE
    if id(schema) in known:
        return known[id(schema)]
    if len(known) >= MAX_SCHEMAS:
        return _NONE
    known[id(schema)] = _NONE  # while it is looked at
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
        more = _arguments(part, root, known)
        properties = more.properties | properties
        required, is_open = required | more.required, is_open or more.is_open
    for key in ("anyOf", "oneOf"):
        choices = [_arguments(choice, root, known) for choice in _listed(schema.get(key))]
        for more in choices:
            properties, is_open = more.properties | properties, is_open or more.is_open
        if choices:
            required |= frozenset.intersection(*(more.required for more in choices))
    known[id(schema)] = _Arguments(properties, frozenset(required), is_open)
    return known[id(schema)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _target(reference: str, root: dict[str, Any]) -> Any:
    """Return what a reference within the schema (#/$defs/Name) leads to; None for others."""
    current: Any = root
    for part in reference.removeprefix("#").split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        current = current.get(key) if isinstance(current, dict) else None
    return current


def _references(schema: Any) -> Iterator[str]:
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


def _refers(schema: Any) -> bool:
    return next(_references(schema), None) is not None


def _has_default(schema: Any) -> bool:
    return isinstance(schema, dict) and "default" in schema
