"""Reads the JSON Schemas of fields as Python types. What has no effect on values, and is no annotation, is refused."""

from __future__ import annotations

import re
from types import GenericAlias
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from bridge.adapters.dspy.schemas.constraints import KEYWORDS, contradiction, unconstrained
from bridge.adapters.dspy.schemas.objects import (
    Items,
    Named,
    Object,
    Property,
    is_kind,
    items_type,
    named_type,
    object_type,
    target_of,
)
from bridge.adapters.dspy.schemas.parts import default_problem, invalid, refuse_if, target, with_constraints
from bridge.adapters.dspy.schemas.vocabulary import (
    ANNOTATIONS,
    APPLIES,
    COMBINATIONS,
    FORMATS,
    JSON_TYPES,
    KNOWN,
    NUMBER_FORMATS,
    STRUCTURE,
    TYPE_NAMES,
    TYPES,
)

MAX_SIZE = 65_536  # characters of a schema
MAX_SCHEMAS = 1000  # that a schema contains
MAX_DEPTH = 32  # schemas inside schemas
MAX_CHOICES = 1000  # values of an enum
MAX_PATTERNS = 32

_NAME = re.compile(r"[A-Za-z_]\w{0,63}")

# As values, because mypy would read `Union[members]` as an annotation.
_literal: Any = Literal
_union: Any = Union


def read_schema(schema: Any, path: str) -> Any:
    """Return the type of the values that `schema` allows.

    Raises InvalidArgs, with the path of the part, for a schema that is invalid, contradicts itself, or has keywords
    that are not supported. path: that of the schema itself.
    """
    return _Reader(schema).read(path)


class _Reader:
    """Reads one schema. Each definition is read once, and a name stands for it, so that it may contain itself."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._named: dict[str, type[Named]] = {}
        self._defaults: list[tuple[Any, Any, str]] = []
        self._begun: dict[str, int] = {}  # how many lists and objects surrounded a reference that is being read
        self._containers = 0
        self._depth = 0
        self._schemas = 0
        self._patterns = 0

    def read(self, path: str) -> Any:
        read = self._type(self._root, path)
        for type, default, where in self._defaults:  # now that all names have a target
            refuse_if(where, default_problem(default, type))
        return read

    def _type(self, schema: Any, path: str) -> Any:
        if schema is True:
            return Any
        if not isinstance(schema, dict):
            raise invalid(path, "false allows no value" if schema is False else "a JSON Schema is a map")
        self._schemas += 1
        self._depth += 1
        if self._schemas > MAX_SCHEMAS or self._depth > MAX_DEPTH:
            deep = self._depth > MAX_DEPTH
            raise invalid(path, f"more than {MAX_DEPTH} levels" if deep else f"more than {MAX_SCHEMAS} schemas")
        for keyword in schema:
            if keyword not in KNOWN and not str(keyword).startswith("x-"):
                supported = ", ".join(sorted(KNOWN - ANNOTATIONS))
                raise invalid(f"{path}.{str(keyword)[:100]}", f"this keyword is not supported; supported: {supported}")
        read = self._combined(schema, path)
        self._depth -= 1
        if "default" in schema:
            self._defaults.append((read, schema["default"], f"{path}.default"))
        return read

    def _combined(self, schema: dict[str, Any], path: str) -> Any:
        used = [keyword for keyword in schema if keyword not in ANNOTATIONS and keyword in KNOWN]
        combination = next((keyword for keyword in COMBINATIONS if keyword in used), None)
        if combination == "allOf":
            return self._all_of(schema, path)
        if combination is not None and used != [combination]:
            raise invalid(path, f"{', '.join(used)} cannot be used together")
        if combination == "$ref":
            return self._reference(schema["$ref"], f"{path}.$ref")
        if combination is not None:
            parts = self._parts(schema, combination, path)
            return _union[tuple(self._type(part, where) for where, part in parts)]
        return self._typed(schema, path)

    def _parts(self, schema: dict[str, Any], keyword: str, path: str) -> list[tuple[str, Any]]:
        parts = schema[keyword]
        if not isinstance(parts, list) or not parts:
            raise invalid(f"{path}.{keyword}", "expected a list of schemas")
        return [(f"{path}.{keyword}[{index}]", part) for index, part in enumerate(parts)]

    def _all_of(self, schema: dict[str, Any], path: str) -> Any:
        """Return the type of schemas that all apply, merged: their keywords may differ only in properties."""
        merged = {keyword: value for keyword, value in schema.items() if keyword != "allOf"}
        parts = self._parts(schema, "allOf", path)
        for where, part in parts:
            if isinstance(part, dict) and isinstance(part.get("$ref"), str) and len(parts) > 1:
                part = self._target(part["$ref"], where)
            if not isinstance(part, dict):
                raise invalid(where, "a JSON Schema is a map")
            for keyword, value in part.items():
                own: Any = merged.setdefault(keyword, value)
                if own == value or keyword in ANNOTATIONS:
                    continue
                both = (own, value)
                if keyword == "properties" and all(isinstance(each, dict) for each in both) and not own.keys() & value:
                    merged[keyword] = {**own, **value}
                elif keyword == "required" and all(isinstance(each, list) for each in both):
                    merged[keyword] = [*own, *(name for name in value if name not in own)]
                else:
                    raise invalid(f"{where}.{keyword}", "schemas that all apply may have different properties only")
        return self._type(merged, path)

    def _reference(self, reference: Any, path: str) -> Any:
        schema = self._target(reference, path)
        if reference in self._named:
            if self._begun.get(reference) == self._containers:
                raise invalid(path, f"{reference} refers to itself without a list or an object in between")
            return self._named[reference]
        name = reference.rpartition("/")[2]
        named = self._named[reference] = named_type(name if _NAME.fullmatch(name) else "dict")
        self._begun[reference] = self._containers
        named.target = self._type(schema, path)
        del self._begun[reference]
        return named

    def _target(self, reference: Any, path: str) -> Any:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise invalid(path, "only references within the schema (#/$defs/…) are allowed")
        try:
            return target(self._root, reference)
        except KeyError:
            raise invalid(path, f"the schema has no {reference[:100]!r}") from None

    def _typed(self, schema: dict[str, Any], path: str) -> Any:
        """Return the type of a schema without combinations."""
        if schema.get("type") in ("integer", "number") and schema.get("format") in list(NUMBER_FORMATS):
            schema = {**NUMBER_FORMATS[schema["format"]], **schema}
            del schema["format"]
        given = schema.get("type")
        if given is None:
            given = list(dict.fromkeys(STRUCTURE[keyword] for keyword in schema if keyword in STRUCTURE))
        names = given if isinstance(given, list) else [given]
        if not names and "type" in schema:
            raise invalid(f"{path}.type", f"expected one of {', '.join(TYPE_NAMES)}")
        for name in names:
            if not isinstance(name, str) or name not in TYPE_NAMES:
                raise invalid(f"{path}.type", f"expected one of {', '.join(TYPE_NAMES)}")
        kinds = {*names, "number"} if schema.get("format") == "decimal" else set(names)
        for keyword in schema:
            applies = APPLIES.get(keyword)
            if applies is not None and not applies & kinds:
                named = " or ".join(names) or "any type"
                raise invalid(f"{path}.{keyword}", f"does not apply to {named}, only to {' or '.join(sorted(applies))}")
        if "enum" in schema or "const" in schema:
            return self._choice(schema, names, path)
        members = tuple(self._one(schema, name, path) for name in names)
        return _union[members] if members else Any

    def _choice(self, schema: dict[str, Any], names: list[str], path: str) -> Any:
        keyword = "enum" if "enum" in schema else "const"
        where = f"{path}.{keyword}"
        choices = schema["enum"] if keyword == "enum" else [schema["const"]]
        if not isinstance(choices, list) or not 0 < len(choices) <= MAX_CHOICES:
            raise invalid(where, f"expected a list of 1 to {MAX_CHOICES} values")
        if keyword == "enum" and "const" in schema:
            raise invalid(where, "enum and const cannot be used together")
        others = {key: value for key, value in schema.items() if key not in ("enum", "const", "default")}
        allowed = self._typed(others, path)
        for choice in choices:
            if not isinstance(choice, str | int | float | None):
                raise invalid(where, "only texts, numbers, true, false and null can be values")
            if names and not JSON_TYPES[type(choice)] & set(names):
                raise invalid(where, f"{str(choice)[:50]!r} is not of the type {' or '.join(names)}")
            refuse_if(where, default_problem(choice, allowed))
        return _literal[tuple(choices)]

    def _one(self, schema: dict[str, Any], name: str, path: str) -> Any:
        """Return the type of a schema as far as it is about one of JSON's types."""
        constraints = {keyword: schema[keyword] for keyword in KEYWORDS if keyword in schema}
        constraints = {k: bound for k, bound in constraints.items() if name in APPLIES[k]}
        format = constraints.get("format")
        if isinstance(format, str) and format in FORMATS:
            del constraints["format"]
            if constraints:
                raise invalid(f"{path}.{min(constraints)}", f"cannot be used with the format {format}")
            bounds = {keyword: schema[keyword] for keyword in KEYWORDS if keyword in schema and keyword != "format"}
            return with_constraints(FORMATS[format], bounds, path)
        self._patterns += "pattern" in constraints
        if self._patterns > MAX_PATTERNS:
            raise invalid(f"{path}.pattern", f"more than {MAX_PATTERNS} patterns")
        if name == "array":
            base = self._list(schema, path)
        elif name == "object":
            base = self._object(schema, path)
        else:
            base = TYPES[name]
        for keyword, bound in _implied(base).items():
            refuse_if(path, contradiction({**constraints, keyword: bound}))
        return with_constraints(base, constraints, path, is_integer=name == "integer")

    def _list(self, schema: dict[str, Any], path: str) -> Any:
        self._containers += 1
        items, first = schema.get("items", True), schema.get("prefixItems")
        if first is None:
            read: Any = GenericAlias(list, (self._type({} if items == [] else items, f"{path}.items"),))
        else:
            parts = self._parts(schema, "prefixItems", path)
            others = None if items is False else self._type(items, f"{path}.items")
            read = items_type(tuple(self._type(part, where) for where, part in parts), others)
        self._containers -= 1
        return read

    def _object(self, schema: dict[str, Any], path: str) -> Any:
        self._containers += 1
        declared, required = schema.get("properties") or {}, schema.get("required") or []
        if not isinstance(declared, dict):
            raise invalid(f"{path}.properties", "expected a map of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            raise invalid(f"{path}.required", "expected a list of names")
        more = schema.get("additionalProperties", True)
        others = None if more is False else self._type({} if more == [] else more, f"{path}.additionalProperties")
        keys = self._keys(schema.get("propertyNames", {}), f"{path}.propertyNames")
        undeclared = [name for name in required if name not in declared]
        if undeclared and others is None:
            raise invalid(f"{path}.required", f"{undeclared[0]!r} is required, but may not occur")
        properties = {
            name: self._property(each, name in required, f"{path}.properties.{name}") for name, each in declared.items()
        }
        properties |= {name: Property(others, True) for name in undeclared}
        self._containers -= 1
        if not properties and others is not None:
            return GenericAlias(dict, (keys, others))
        title = schema.get("title")
        name = title if isinstance(title, str) and _NAME.fullmatch(title) else "dict"
        return object_type(name, properties, others, keys)

    def _keys(self, schema: Any, path: str) -> Any:
        """Return the type of the names of properties: texts, even if the schema does not say so."""
        is_open = isinstance(schema, dict) and not schema.keys() & {"type", "enum", "const", *COMBINATIONS}
        read = self._type({"type": "string", **schema} if is_open else schema, path)
        kind = unconstrained(target_of(read))[0]
        is_choice = get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind))
        refuse_if(path, None if kind is str or is_choice else "names are texts")
        return read

    def _property(self, schema: Any, is_required: bool, path: str) -> Property:
        read = self._type({} if schema == [] else schema, path)
        if isinstance(schema, dict) and "default" in schema:
            return Property(read, False, msgspec.json.encode(schema["default"]))
        return Property(read, is_required)


def _implied(type: Any) -> dict[str, int]:
    """Return the bounds on the size of a list or an object that follow from what its schema declares."""
    if is_kind(type, Items) and type.others is None:
        return {"maxItems": len(type.first)}
    if not is_kind(type, Object):
        return {}
    required = sum(each.is_required for each in type.properties.values())
    most = {"maxProperties": len(type.properties)} if type.others is None else {}
    return {"minProperties": required, **most}
