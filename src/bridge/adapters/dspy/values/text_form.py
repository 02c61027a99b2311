"""The values that have a text form in prompts: those of JSON, and dates, times, decimals and UUIDs."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from collections.abc import Mapping
from typing import Any

MAX_BITS = 14284  # of an integer; Python converts integers of up to 4300 decimal digits to text
EXACT_DIGITS = 15  # of a decimal number that every 64-bit float represents exactly
_SCALARS = (str, datetime.date, datetime.time, decimal.Decimal, uuid.UUID, type(None))


def without_text_form(value: Any, path: str) -> tuple[str, str] | None:
    """Return the path and the kind of the first part of `value` that has no text form; None if all parts have one.

    path: that of `value` itself.
    """
    if _is_plain(value):
        return None
    waiting = [(path, value)]
    while waiting:
        where, current = waiting.pop()
        if isinstance(current, Mapping):
            for key in current:
                if not isinstance(key, str | int | float | None):
                    return where, f"a map with a key of type {type(key).__name__}"
                if isinstance(key, int) and key.bit_length() > MAX_BITS:
                    return where, "a map whose key is an integer of more than 4300 digits"
            waiting += reversed(_parts(current, where))
        elif isinstance(current, list | tuple):
            waiting += reversed(_parts(current, where))
        elif isinstance(current, float):
            if not math.isfinite(current):
                return where, str(current)
        elif isinstance(current, int):
            if current.bit_length() > MAX_BITS:
                return where, "an integer of more than 4300 digits"
        elif not isinstance(current, _SCALARS):
            return where, _KINDS.get(type(current).__name__, type(current).__name__)
    return None


def _is_plain(value: Any) -> bool:
    """Return whether `value` certainly has a text form. Faster than finding the path of a part that has none."""
    waiting = [value]
    while waiting:
        current = waiting.pop()
        kind = type(current)
        if kind is str or kind is bool or current is None:
            continue
        if kind is int:
            if current.bit_length() > MAX_BITS:
                return False
        elif kind is float:
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
    """Return the path of the first float in `value` that may have been rounded, or None.

    A float may have been rounded if it has more than EXACT_DIGITS digits. path: that of `value` itself.
    """
    waiting = [(path, value)]
    while waiting:
        where, current = waiting.pop()
        if isinstance(current, float):
            digits = repr(current).partition("e")[0].replace(".", "").strip("-0")
            if len(digits) > EXACT_DIGITS:
                return where
        else:
            waiting += reversed(_parts(current, where))
    return None


def _parts(value: Any, path: str) -> list[tuple[str, Any]]:
    """Return the parts of a map or a list, each with its path."""
    if isinstance(value, Mapping):
        return [(f"{path}.{key}", entry) for key, entry in value.items()]
    if isinstance(value, list | tuple):
        return [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    return []


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
