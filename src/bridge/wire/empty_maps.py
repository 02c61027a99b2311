"""Empty lists where a map is expected: Elixir writes an empty keyword list as `[]`.

Only called for args that did not match their type, so that matching ones cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from msgspec import inspect

from bridge.wire.arrays import type_of

LONGEST = 16  # bytes of an encoded empty list: JSON may have white space in it

_MAPS = (inspect.DictType, inspect.TypedDictType, inspect.DataclassType, inspect.StructType)
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


class EmptyMaps:
    """Replaces empty lists by empty maps in the encoded args of one format.

    decode(data, type), encode(value): those of the format.
    """

    def __init__(self, decode: Callable[[Any, Any], Any], encode: Callable[[Any], bytes]) -> None:
        self._decode = decode
        self._encode = encode
        self._empty = msgspec.Raw(encode({}))

    def replaced(self, data: Any, type: Any) -> msgspec.Raw | None:
        """Return `data` (a buffer) with an empty map for each empty list that stands where `type`
        has a map and no list; None where there is nothing to replace."""
        return self._replaced(msgspec.Raw(bytes(data)), type_of(type))

    def _replaced(self, raw: msgspec.Raw, info: inspect.Type) -> msgspec.Raw | None:
        kinds = [*_alternatives(info)]
        maps = [kind for kind in kinds if _is_map(kind)]
        lists = [kind for kind in kinds if isinstance(kind, _LISTS)]
        if maps and not lists and self._is_empty_list(raw):
            return self._empty
        entries = self._decoded(raw, dict[str, msgspec.Raw]) if maps else None
        if entries is not None:
            return self._with(entries, lambda name: _values(maps, name))
        items = self._decoded(raw, list[msgspec.Raw]) if lists else None
        if items is not None:
            return self._with(dict(enumerate(items)), lambda index: [lists[0].item_type])
        return None

    def _with(
        self, entries: dict[Any, msgspec.Raw], expected: Callable[[Any], list[inspect.Type]]
    ) -> msgspec.Raw | None:
        """Return the map or the list (keys: 0, 1, …) of `entries`, where any of them changes."""
        changed = {}
        for key, entry in entries.items():
            for info in expected(key):
                made = self._replaced(entry, info)
                if made is not None:
                    changed[key] = made
        if not changed:
            return None
        every = {**entries, **changed}
        return msgspec.Raw(self._encode([*every.values()] if 0 in every else every))

    def _is_empty_list(self, raw: msgspec.Raw) -> bool:
        return len(bytes(raw)) <= LONGEST and self._decoded(raw, list[msgspec.Raw]) == []

    def _decoded(self, raw: msgspec.Raw, type: Any) -> Any:
        try:
            return self._decode(raw, type)
        except (msgspec.MsgspecError, ValueError):
            return None


def _alternatives(info: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(info, inspect.Metadata):
        yield from _alternatives(info.type)
    elif isinstance(info, inspect.UnionType):
        for each in info.types:
            yield from _alternatives(each)
    else:
        yield info


def _is_map(info: inspect.Type) -> bool:
    return isinstance(info, _MAPS) and not getattr(info, "array_like", False)


def _values(maps: list[Any], name: str) -> list[inspect.Type]:
    """Return the types that the entry `name` may have in one of `maps`."""
    types = []
    for each in maps:
        if isinstance(each, inspect.DictType):
            types.append(each.value_type)
        else:
            types += [field.type for field in each.fields if field.encode_name == name]
    return types
