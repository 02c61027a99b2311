"""Empty lists where a map is expected: Elixir encodes an empty keyword list as `[]`.

Only used for args that do not match their type, so that matching args cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

from bridge.wire.type_walk import alternatives, parts, type_of

LONGEST = 16  # bytes of an encoded empty list: JSON may have white space in it

_MAPS = (inspect.DictType, inspect.TypedDictType, inspect.DataclassType, inspect.StructType)
_LISTS = (inspect.ListType, inspect.VarTupleType, inspect.SetType, inspect.FrozenSetType)


class EmptyMaps:
    """Replaces empty lists with empty maps in encoded args.

    decode(data, type), encode(value): the functions of their format.
    """

    def __init__(self, decode: Callable[[Any, Any], Any], encode: Callable[[Any], bytes]) -> None:
        self._decode = decode
        self._encode = encode

    def replaced(self, data: Any, type: Any) -> msgspec.Raw | None:
        """Return `data` (a buffer) with an empty map for each empty list where `type` has a map and
        no list; None if there is nothing to replace."""
        return self._replaced(msgspec.Raw(bytes(data)), type_of(type))

    def _replaced(self, raw: msgspec.Raw, info: inspect.Type) -> msgspec.Raw | None:
        types = [*alternatives(info)]
        maps = [each for each in types if isinstance(each, _MAPS) and not getattr(each, "array_like", False)]
        lists = [each for each in types if isinstance(each, _LISTS)]
        if maps and not lists and self._is_empty_list(raw):
            return msgspec.Raw(self._encode({}))
        for expected, type in ((maps, dict[str, msgspec.Raw]), (lists[:1], list[msgspec.Raw])):
            entries = self._decoded(raw, type) if expected else None
            if entries is not None:
                return self._with_replaced_parts(entries, expected)
        return None

    def _with_replaced_parts(self, entries: Any, types: list[Any]) -> msgspec.Raw | None:
        changed = {}
        for info in types:
            for key, _, type, entry in parts(info, entries):
                replaced = self._replaced(entry, type)
                if replaced is not None:
                    changed[key] = replaced
        if not changed:
            return None
        for key, replaced in changed.items():
            entries[key] = replaced
        return msgspec.Raw(self._encode(entries))

    def _is_empty_list(self, raw: msgspec.Raw) -> bool:
        return len(bytes(raw)) <= LONGEST and self._decoded(raw, list[msgspec.Raw]) == []

    def _decoded(self, raw: msgspec.Raw, type: Any) -> Any:
        try:
            return self._decode(raw, type)
        except (msgspec.MsgspecError, ValueError):
            return None
