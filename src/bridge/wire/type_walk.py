"""The walk over a value together with its msgspec type, which finds the type of each part of the value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from msgspec import inspect

from bridge.errors import shown

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


def walk(type: Any, value: Any, path: str, is_wanted: Callable[[Any], bool]) -> list[tuple[str, Any, Any]]:
    """Return (path, type, value) of each part of a value of `type`, itself included, that may have a wanted type.

    value: decoded data, also after its conversion to a type: struct instances are entered too. is_wanted: called
    once for each type that a part may have; a value whose type has no wanted ones is not entered.
    """
    found: list[tuple[str, Any, Any]] = []
    _walk(type_of(type), value, path, _holders(type, is_wanted), found)
    return found


def _walk(info: Any, value: Any, path: str, holders: dict[int, bool], found: list[tuple[str, Any, Any]]) -> None:
    is_wanted = holders.get(id(info))
    if is_wanted is None:
        return
    if is_wanted:
        found.append((path, info, value))
    if isinstance(info, _WRAPPERS):
        for each in _inner(info):
            _walk(each, value, path, holders, found)
    else:
        for _, below, type, part in parts(info, value):
            _walk(type, part, path + below, holders, found)


@cache
def _holders(type: Any, is_wanted: Callable[[Any], bool]) -> dict[int, bool]:
    """Return the ids of the types that are wanted (True) or hold a wanted one (False)."""
    infos = [*types_in(type_of(type))]  # which are never freed, because `type_of` keeps them
    return {id(info): is_wanted(info) for info in infos if any(map(is_wanted, types_in(info)))}


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
    try:
        text = key if isinstance(key, str) else ascii(key)[:MAX_KEY]
    except ValueError:  # an integer of more than 4300 digits, or a tuple with one
        text = shown(key)
    return text if len(text) <= MAX_KEY else f"{text[:MAX_KEY]}…"
