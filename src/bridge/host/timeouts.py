"""What a timeout may be."""

from __future__ import annotations

import math
from typing import SupportsFloat

LONGEST = 1e9  # seconds; longer ones, which no clock of the system could wait for, are for ever


def seconds_of(value: SupportsFloat | None, name: str = "timeout", least: float = 0.0) -> float | None:
    """Return `value` as seconds, None for ever: that is None and all that exceeds `LONGEST`.

    Raises TypeError for what is no number, ValueError for NaN and for less than `least`.
    """
    if type(value) is float and least <= value <= LONGEST:
        return value
    if value is None:
        return None
    if isinstance(value, bool) or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} is a number of seconds or None, not {value!r}")
    try:
        seconds = float(value)
    except OverflowError:  # of an integer
        seconds = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if math.isnan(seconds) or seconds < least:
        raise ValueError(f"{name} is {least:g} seconds or more, or None for ever, not {value!r}")
    return seconds if seconds <= LONGEST else None
