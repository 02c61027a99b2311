"""The schema of a payload, inferred from its values.

Formats that need a schema make theirs from it, as one would write it by hand: msgspec's structs in
this module, the others in `arrow.py`, `avro.py` and `protobuf.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import keyword
from collections.abc import Iterable
from typing import Any

import msgspec

SCALARS: dict[type, str] = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    bytes: "bytes",
}
PYTHON: dict[str, Any] = {name: kind for kind, name in SCALARS.items()}


@dataclasses.dataclass(frozen=True)
class Schema:
    """The types that a value may have: scalars, a list, a record. A schema without any is unknown.

    items: the schema of list entries, None if the value is never a list.
    fields: the schemas of a record's fields by key, None if the value is never a record.
    optional: keys that may be missing. negative: whether an integer below 0 occurs.
    """

    scalars: frozenset[str] = frozenset()
    items: Schema | None = None
    fields: dict[str, Schema] | None = None
    optional: frozenset[str] = frozenset()
    negative: bool = False

    @property
    def nullable(self) -> bool:
        """Return whether the value may be None."""
        return "null" in self.scalars

    @property
    def kinds(self) -> list[str]:
        """Return the types besides null: names of SCALARS, "list", "record"."""
        found = sorted(self.scalars - {"null"})
        found += ["list"] if self.items is not None else []
        return found + (["record"] if self.fields is not None else [])


NOTHING = Schema()


def infer(value: Any) -> Schema:
    """Return the schema of one value. Raises TypeError for sets, dates, and keys that are not strings."""
    kind = type(value)
    if kind in SCALARS:
        negative = kind is int and value < 0
        return Schema(frozenset({SCALARS[kind]}), negative=negative)
    if kind is list:
        return Schema(items=of_all(value))
    if kind is dict:
        if not all(type(key) is str for key in value):
            raise TypeError("keys that are not strings")
        return Schema(fields={key: infer(entry) for key, entry in value.items()})
    raise TypeError(f"a value of type {kind.__name__}")


def of_all(values: Iterable[Any]) -> Schema:
    """Return the schema that all of `values` match."""
    return functools.reduce(merge, map(infer, values), NOTHING)


def merge(one: Schema, other: Schema) -> Schema:
    """Return the schema that values of both schemas match."""
    if one == other:
        return one
    return Schema(
        one.scalars | other.scalars,
        _either(one.items, other.items),
        *_merged_fields(one, other),
        one.negative or other.negative,
    )


def _either(one: Schema | None, other: Schema | None) -> Schema | None:
    return merge(one, other) if one is not None and other is not None else one or other


def _merged_fields(one: Schema, other: Schema) -> tuple[dict[str, Schema] | None, frozenset[str]]:
    if one.fields is None or other.fields is None:
        holder = other if one.fields is None else one
        return holder.fields, holder.optional
    fields = {
        key: merge(one.fields.get(key, NOTHING), other.fields.get(key, NOTHING))
        for key in {**one.fields, **other.fields}
    }
    in_one_only = one.fields.keys() ^ other.fields.keys()
    return fields, one.optional | other.optional | in_one_only


def msgspec_type(schema: Schema, name: str = "Message") -> Any:
    """Return the type that one would declare in msgspec: structs for records, UNSET for missing keys.

    Some unions are refused only when a decoder is made from the type.
    """
    parts = [PYTHON[scalar] for scalar in sorted(schema.scalars)]
    if schema.items is not None:
        parts.append(list[msgspec_type(schema.items, f"{name}_entry")])  # type: ignore[misc]
    if schema.fields is not None:
        parts.append(_struct(schema, name))
    return functools.reduce(lambda one, other: one | other, parts) if parts else Any


def _struct(schema: Schema, name: str) -> Any:
    names, fields = {}, []
    for index, (key, field) in enumerate((schema.fields or {}).items()):
        proper = key.isidentifier() and not keyword.iskeyword(key) and not key.startswith("__")
        attribute = key if proper else f"field_{index}"
        names[attribute] = key
        kind = msgspec_type(field, f"{name}_{attribute}")
        if key in schema.optional:
            fields.append((attribute, kind | msgspec.UnsetType, msgspec.UNSET))
        else:
            fields.append((attribute, kind))  # type: ignore[arg-type]
    renamed = names if any(k != v for k, v in names.items()) else None
    return msgspec.defstruct(name, fields, rename=renamed, kw_only=True)


def difference(expected: Any, actual: Any, path: str = "$") -> str | None:
    """Return where and how two plain values first differ, or None if they are equal.

    1, 1.0 and True differ, and so do bytes and text. The order of keys does not count.
    """
    if type(expected) is not type(actual):
        return f"{path}: {_short(expected)} became {_short(actual)}"
    if isinstance(expected, dict):
        for key in expected:
            if key not in actual:
                return f"{path}: the key {_short(key)} is missing"
            if found := difference(expected[key], actual[key], f"{path}.{key}"):
                return found
        more = [key for key in actual if key not in expected]
        return f"{path}: a key {_short(more[0])} appeared" if more else None
    if isinstance(expected, list):
        if len(expected) != len(actual):
            return f"{path}: {len(expected)} entries became {len(actual)}"
        pairs = enumerate(zip(expected, actual, strict=True))
        return next((f for i, (one, other) in pairs if (f := difference(one, other, f"{path}[{i}]"))), None)
    return None if expected == actual else f"{path}: {_short(expected)} became {_short(actual)}"


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text[:24]}…" if len(text) > 40 else text
