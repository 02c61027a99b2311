"""Check timeouts that a caller gives."""

from __future__ import annotations

import math
from typing import SupportsFloat

LONGEST = 1e9  # seconds; the system cannot wait longer, so longer timeouts mean forever
START_TIMEOUT = 30.0  # seconds; the first import of DSPy takes more than 10 on a busy machine


def seconds_of(value: SupportsFloat | None, name: str = "timeout", least: float = 0.0) -> float | None:
    """Return `value` in seconds, or None, which means forever, if it is None or exceeds `LONGEST`.

    Raises TypeError if it is not a number, ValueError if it is NaN or less than `least`.
    """
    if type(value) is float and least <= value <= LONGEST:
        return value
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number of seconds or None, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # an integer that is too large
        seconds = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(seconds):
        raise ValueError(f"{name} must be a number of seconds or None, not {value!r}")
    if seconds < least:
        raise ValueError(f"{name} must be at least {least:g} seconds, or None for no limit, not {value!r}")
    return seconds if seconds <= LONGEST else None
