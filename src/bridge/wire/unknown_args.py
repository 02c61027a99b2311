"""The error for args that a command does not have. Only used after decoding has failed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from msgspec import inspect

from bridge.errors import InvalidArgs
from bridge.wire.type_walk import short_key, walk

MAX_LISTED = 20  # unknown names in one error


class Unknown(NamedTuple):
    """Represents the unknown keys of one map."""

    path: str
    names: list[str]
    known: list[str]

    def __str__(self) -> str:
        named = ", ".join(_with_suggestion(name, self.known) for name in self.names[:MAX_LISTED])
        more = ", …" if len(self.names) > MAX_LISTED else ""
        return f"{self.path}: unknown: {named}{more}; known: {', '.join(self.known) or 'none'}"


def unknown_args(value: Any, type: Any, path: str) -> InvalidArgs | None:
    """Return the error for names in `value` that `type` does not have, or None."""
    parts = walk(type, value, path, _refuses_unknown)
    found = [unknown for part in parts for unknown in _unknown(*part)]
    if not found:
        return None
    first = found[0]
    return InvalidArgs(
        "; ".join(map(str, found[:3])),
        path=f"{first.path}.{first.names[0]}",
        unknown=first.names[:MAX_LISTED],
        known=first.known,
    )


def _refuses_unknown(info: inspect.Type) -> bool:
    return isinstance(info, inspect.StructType) and info.forbid_unknown_fields


def _unknown(path: str, info: inspect.StructType, value: Any) -> Iterator[Unknown]:
    if not isinstance(value, Mapping):
        return
    types = {field.encode_name: field.type for field in info.fields}
    unknown = [short_key(key) for key in value if key not in types]
    if unknown:
        known = sorted(name for name, type in types.items() if not _is_ignored(type))
        yield Unknown(path, unknown, known)


def _is_ignored(info: inspect.Type) -> bool:
    return isinstance(info, inspect.Metadata) and bool((info.extra or {}).get("ignored"))


def _with_suggestion(name: str, known: list[str]) -> str:
    import difflib  # not at the top: importing it would slow down the start of every worker

    if not name.strip():
        return repr(name)
    near = difflib.get_close_matches(name, known, n=1)
    return f"{name} (did you mean {near[0]}?)" if near else name
