"""How long to wait before a call is repeated. Delays are in seconds and never longer than CAP.

`random` is a function that returns a number in [0, 1), so that a test can choose it.
"""

from __future__ import annotations

from collections.abc import Callable

Random = Callable[[], float]

BASE = 1.0
CAP = 30.0
JITTER = 0.25  # the part of a delay that is added or subtracted at most
IMMEDIATE = (0.0, 0.1, 0.2)


def immediate(attempt: int) -> float:
    """Return the delay after attempt 1, 2, … of a call that is repeated at once: 0, 0.1, 0.2, and 0.2 from then on."""
    return IMMEDIATE[min(attempt, len(IMMEDIATE)) - 1]


def exponential(attempt: int, random: Random) -> float:
    """Return BASE, doubled with each attempt after the first up to CAP, ± 25 %."""
    return _jittered(BASE * 2.0 ** min(attempt - 1, 16), random)


def linear(attempt: int, random: Random) -> float:
    """Return BASE times the number of attempts, up to CAP, ± 25 %."""
    return _jittered(BASE * attempt, random)


def decorrelated(previous: float, random: Random) -> float:
    """Return a delay between BASE and three times the previous delay, up to CAP. previous: 0.0 for the first delay.

    Callers that failed together spread out faster than with `exponential`.
    """
    return min(CAP, BASE + random() * max(0.0, 3.0 * previous - BASE))


def _jittered(delay: float, random: Random) -> float:
    return min(CAP, min(CAP, delay) * (1.0 - JITTER + 2.0 * JITTER * random()))
