"""What a msgspec type says about the parts of its values: the one walk over a value together with its type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

from msgspec import inspect

MAX_KEY = 100  # characters of a key in a path


class Part(NamedTuple):
    """A part of a value. path: from the value to the part, such as `.name` or `[0]`. type: what the value's
    type says of it."""

    key: Any
    path: str
    type: Any
    value: Any


@cache
def type_of(type: Any) -> Any:
    """Return msgspec's description of `type`."""
    return inspect.type_info(type)


def walk(info: Any, value: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, type, value) of a value and of all its parts, with every type that may apply to each.

    value: decoded data, or what was made of it: struct instances are entered too.
    """
    yield path, info, value
    if isinstance(info, inspect.Metadata | inspect.UnionType):
        for each in _inner(info):
            yield from walk(each, value, path)
    else:
        for part in parts(info, value):
            yield from walk(part.type, part.value, path + part.path)


def parts(info: Any, value: Any) -> Iterator[Part]:
    """Yield the parts of `value` for which `info`, neither a union nor metadata, has a type."""
    if hasattr(info, "fields"):  # structs, dataclasses, typed dicts, named tuples
        yield from _fields(info, value)
    elif isinstance(info, inspect.DictType):
        if isinstance(value, Mapping):
            for key, entry in value.items():
                yield Part(key, f".{short_key(key)}", info.value_type, entry)
    elif isinstance(value, list | tuple):
        for index, (type, entry) in enumerate(zip(_item_types(info, len(value)), value, strict=False)):
            yield Part(index, f"[{index}]", type, entry)


def _fields(info: Any, value: Any) -> Iterator[Part]:
    if isinstance(value, Mapping):
        for field in info.fields:
            if field.encode_name in value:
                yield Part(field.encode_name, f".{field.encode_name}", field.type, value[field.encode_name])
    elif value.__class__ is getattr(info, "cls", None):
        first = None if not getattr(info, "array_like", False) else 0 if info.tag is None else 1
        for index, field in enumerate(info.fields, first or 0):
            path = f".{field.encode_name}" if first is None else f"[{index}]"
            yield Part(field.name, path, field.type, getattr(value, field.name))


def _item_types(info: Any, length: int) -> Any:
    if isinstance(info, inspect.TupleType):
        return info.item_types
    return (info.item_type,) * length if hasattr(info, "item_type") else ()


def alternatives(info: Any) -> Iterator[Any]:
    """Yield the types that a value of `info` may have: no metadata, and no union."""
    if isinstance(info, inspect.Metadata | inspect.UnionType):
        for each in _inner(info):
            yield from alternatives(each)
    else:
        yield info


def _inner(info: Any) -> tuple[Any, ...]:
    return (info.type,) if isinstance(info, inspect.Metadata) else info.types


def types_in(info: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield `info` and each type that parts of its values may have, once."""
    seen = set() if seen is None else seen
    if id(info) in seen:
        return
    seen.add(id(info))
    yield info
    fields = [field.type for field in getattr(info, "fields", ())]
    several = [*getattr(info, "types", ()), *getattr(info, "item_types", ())]
    one = [getattr(info, name, None) for name in ("type", "item_type", "key_type", "value_type")]
    for part in (*fields, *several, *one):
        if isinstance(part, inspect.Type):
            yield from types_in(part, seen)


def short_key(key: Any) -> str:
    """Return a key as text for a path or an error, cut to MAX_KEY characters."""
    text = key if isinstance(key, str) else ascii(key)[:MAX_KEY]
    return text if len(text) <= MAX_KEY else f"{text[:MAX_KEY]}…"
