"""What a request holds beyond what its command knows, found once decoding has failed for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import inspect

from bridge.errors import InvalidArgs
from bridge.wire.arrays import type_of

MAX_LISTED = 20  # unknown names in one error
MAX_NAME = 100  # characters of one of them


class Unknown(NamedTuple):
    """The unknown keys of one map."""

    path: str
    names: list[str]
    known: list[str]

    def __str__(self) -> str:
        named = ", ".join(_with_suggestion(name, self.known) for name in self.names[:MAX_LISTED])
        more = ", …" if len(self.names) > MAX_LISTED else ""
        return f"{self.path}: unknown: {named}{more}; known: {', '.join(self.known) or 'none'}"


def unknown_args(value: Any, type: Any, path: str) -> InvalidArgs | None:
    """Return the error for what `value` holds that `type` forbids; None where it holds nothing
    such."""
    found = list(_unknown(type_of(type), value, path))
    if not found:
        return None
    first = found[0]
    return InvalidArgs(
        "; ".join(map(str, found[:3])),
        path=f"{first.path}.{first.names[0]}",
        unknown=first.names[:MAX_LISTED],
        known=first.known,
    )


def _unknown(info: inspect.Type, value: Any, path: str) -> Iterator[Unknown]:
    match info:
        case inspect.Metadata():
            yield from _unknown(info.type, value, path)
        case inspect.UnionType():
            for each in info.types:
                yield from _unknown(each, value, path)
        case inspect.StructType() if isinstance(value, Mapping):
            yield from _of_struct(info, value, path)
        case inspect.DictType() if isinstance(value, Mapping):
            for key, entry in value.items():
                yield from _unknown(info.value_type, entry, f"{path}.{_shortened(key)}")
        case inspect.ListType() | inspect.VarTupleType() if isinstance(value, list | tuple):
            for index, entry in enumerate(value):
                yield from _unknown(info.item_type, entry, f"{path}[{index}]")


def _of_struct(info: inspect.StructType, value: Mapping[Any, Any], path: str) -> Iterator[Unknown]:
    types = {field.encode_name: field.type for field in info.fields}
    unknown = [_shortened(key) for key in value if key not in types]
    if unknown and info.forbid_unknown_fields:
        known = sorted(name for name, type in types.items() if not _is_ignored(type))
        yield Unknown(path, unknown, known)
    for key, entry in value.items():
        if key in types:
            yield from _unknown(types[key], entry, f"{path}.{key}")


def _is_ignored(info: inspect.Type) -> bool:
    return isinstance(info, inspect.Metadata) and bool((info.extra or {}).get("ignored"))


def _shortened(key: Any) -> str:
    text = key if isinstance(key, str) else ascii(key)[:MAX_NAME]
    return text if len(text) <= MAX_NAME else f"{text[:MAX_NAME]}…"


def _with_suggestion(name: str, known: list[str]) -> str:
    import difflib  # here because it would be a part of every worker's start

    if not name.strip():
        return repr(name)
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name
