"""Which values a prompt can show: those of JSON, and dates, times, decimals and UUIDs."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Mapping
from typing import Any

EXACT_DIGITS = 15  # of a decimal number, which every float of 64 bits keeps
_SCALARS = (str, int, datetime.date, datetime.time, decimal.Decimal, uuid.UUID, type(None))


def without_text_form(value: Any, path: str) -> tuple[str, str] | None:
    """The first place in `value`, which stands at `path`, that a prompt cannot show, and what is
    there in words; None where it can show everything."""
    if _is_plain(value):
        return None
    waiting = [(path, value)]
    while waiting:
        place, current = waiting.pop()
        if isinstance(current, Mapping):
            for key in current:
                if not isinstance(key, str | int | float | None):
                    return place, f"a map with a key of type {type(key).__name__}"
            entries = [(f"{place}.{key}", entry) for key, entry in current.items()]
            waiting += reversed(entries)
        elif isinstance(current, list | tuple):
            items = [(f"{place}[{index}]", item) for index, item in enumerate(current)]
            waiting += reversed(items)
        elif isinstance(current, float):
            if not math.isfinite(current):
                return place, str(current)
        elif not isinstance(current, _SCALARS):
            return place, _KINDS.get(type(current).__name__, type(current).__name__)
    return None


def _is_plain(value: Any) -> bool:
    """Whether it is certain that a prompt can show all of `value`; without looking for places."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        kind = type(current)
        if kind is str or kind is int or kind is bool or current is None:
            continue
        if kind is float:
            if not math.isfinite(current):
                return False
        elif kind is list:
            waiting += current
        elif kind is dict and all(type(key) is str for key in current):
            waiting += current.values()
        else:
            return False
    return True


def rounded_float(value: Any, path: str) -> str | None:
    """The first place in `value`, which stands at `path`, with a float of more digits than all
    floats have: it may not be what was sent. None if there is none."""
    if isinstance(value, float):
        digits = repr(value).partition("e")[0].replace(".", "").strip("-0")
        return path if len(digits) > EXACT_DIGITS else None
    parts: list[tuple[Any, str]] = []
    if isinstance(value, Mapping):
        parts = [(entry, f"{path}.{key}") for key, entry in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(item, f"{path}[{index}]") for index, item in enumerate(value)]
    return next((found for found in (rounded_float(*part) for part in parts) if found), None)


_KINDS = {
    "Ext": "a MessagePack extension",
    "Opaque": "an Erlang term without a form in JSON (a pid, reference, function or port)",
    "bytes": "binary data",
    "bytearray": "binary data",
    "memoryview": "binary data",
    "Frame": "binary data",
    "ndarray": "an array",
    "Tensor": "an array",
}
