"""NaN and infinities, which JSON and ETF cannot carry: the error that names the path of the first one in a value.

`_walk.survey` notices that a value holds one; then `_frames` calls this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import msgspec

from bridge.errors import SHOWN, NotEncodable, shown
from bridge.wire import _etf, tensors


def refuse_non_finite(value: Any, name: str) -> None:
    """Raise NotEncodable if `value`, called `name` in the error, holds NaN or an infinity."""
    try:
        found = _non_finite(value)
    except Exception:  # a value that cannot be encoded for another reason
        return
    if found is not None:
        number, keys = found
        path = name + "".join(reversed(keys))
        raise NotEncodable(f"{path} is {number}, which JSON and ETF cannot carry", path=path)


def _non_finite(value: Any) -> tuple[float, list[str]] | None:
    """Return the first NaN or infinity in `value` and the keys that lead to it, innermost first."""
    kind = type(value)
    if kind in _HARMLESS:
        return None
    if issubclass(kind, float):
        return None if math.isfinite(value) else (float(value), [])
    entries: Iterable[tuple[Any, Any]]
    if issubclass(kind, Mapping):
        entries = value.items()
    elif issubclass(kind, Sequence | Set):
        entries = enumerate(value)
    else:  # structs, dataclasses, numpy's numbers, dates, …
        plain = msgspec.to_builtins(value, enc_hook=tensors.without_arrays)
        return None if type(plain) is kind else _non_finite(plain)
    for key, entry in entries:
        found = _non_finite(entry) or (_non_finite(key) if isinstance(key, float) else None)
        if found is not None:
            is_name = issubclass(kind, Mapping) and isinstance(key, str)
            found[1].append(f".{str(key)[:SHOWN]}" if is_name else f"[{shown(key)}]")
            return found
    return None


# These hold no numbers. Looked up first, because most values of a reply are one of them.
_HARMLESS = {
    *(str, int, bool, type(None), bytes, bytearray, memoryview),
    *(msgspec.Raw, _etf.Atom, _etf.Opaque, tensors.Tensor),
}
