"""The walk over a value together with its msgspec type, which finds the type of each part of the value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from msgspec import inspect

MAX_KEY = 100  # characters of a key in a path


# Tuples, because `X | Y` would be created anew for each value.
_WRAPPERS = (inspect.Metadata, inspect.UnionType)
_LEAVES = (inspect.CustomType, inspect.AnyType, inspect.StrType, inspect.IntType, inspect.FloatType, inspect.RawType)
_SEQUENCES = (list, tuple)

# A part of a value: its key, the path to it from the value, such as `.name` or `[0]`, its type, and itself.
Part = tuple[Any, str, Any, Any]


@cache
def type_of(type: Any) -> Any:
    """Return msgspec's description of `type`."""
    return inspect.type_info(type)


def walk(info: Any, value: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield (path, type, value) of a value and of all its parts, with every type that may apply to each.

    value: decoded data, also after its conversion to a type: struct instances are entered too.
    """
    yield path, info, value
    if isinstance(info, _WRAPPERS):
        for each in _inner(info):
            yield from walk(each, value, path)
    else:
        for _, below, type, part in parts(info, value):
            yield from walk(type, part, path + below)


def parts(info: Any, value: Any) -> Iterable[Part]:
    """Return the parts of `value` for which `info`, neither a union nor metadata, has a type."""
    if isinstance(info, _LEAVES):
        return ()
    if isinstance(value, dict):
        return _entries(info, value)
    if isinstance(value, _SEQUENCES) and not hasattr(info, "fields"):
        types = _item_types(info, len(value))
        return [(i, f"[{i}]", type, item) for i, (type, item) in enumerate(zip(types, value, strict=False))]
    return _fields(info, value) if value.__class__ is getattr(info, "cls", None) and hasattr(info, "fields") else ()


def _entries(info: Any, value: dict[Any, Any]) -> Iterator[Part]:
    if isinstance(info, inspect.DictType):
        for key, entry in value.items():
            yield key, f".{short_key(key)}", info.value_type, entry
    for field in getattr(info, "fields", ()):  # structs, dataclasses, typed dicts
        if field.encode_name in value:
            yield field.encode_name, f".{field.encode_name}", field.type, value[field.encode_name]


def _fields(info: Any, value: Any) -> Iterator[Part]:
    """Yield the fields of an instance of `info`; some structs are lists on the wire."""
    is_list = getattr(info, "array_like", False)
    for index, field in enumerate(info.fields, 1 if is_list and info.tag is not None else 0):
        path = f"[{index}]" if is_list else f".{field.encode_name}"
        yield field.name, path, field.type, getattr(value, field.name)


def _item_types(info: Any, length: int) -> Any:
    if isinstance(info, inspect.TupleType):
        return info.item_types
    return (info.item_type,) * length if hasattr(info, "item_type") else ()


def alternatives(info: Any) -> Iterator[Any]:
    """Yield the types that a value of `info` may have: no metadata, and no union."""
    if isinstance(info, _WRAPPERS):
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
