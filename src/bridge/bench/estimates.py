"""Medians, how sure they are, and which of two differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.95


class Estimate(msgspec.Struct, frozen=True):
    """A median of samples, and the interval in which the true one lies with CONFIDENCE."""

    median: float
    low: float
    high: float
    samples: list[float]


def estimate(samples: Sequence[float]) -> Estimate:
    """The median, with the percentile interval of its bootstrap.

    The bootstrap is exact instead of drawn: of n samples, a resample's median (of an odd n; of an
    even one, the lower and the upper middle) is at most the k-th smallest exactly when as many
    draws as reach the middle are among the k smallest, which is a binomial probability. It is what
    endlessly many resamples would give, and needs no seed. (Efron 1979; Maritz and Jarrett 1978.)
    With one sample the interval is that sample, and says nothing.
    """
    ordered = sorted(samples)
    count = len(ordered)
    lower, upper = (count - 1) // 2, count // 2
    tail = (1 - CONFIDENCE) / 2
    low = next(k for k in range(count) if _at_most(count, k + 1, lower + 1) >= tail)
    high = next(k for k in range(count) if _at_most(count, k + 1, upper + 1) >= 1 - tail)
    median = (ordered[lower] + ordered[upper]) / 2
    return Estimate(median, ordered[low], ordered[high], list(samples))


def _at_most(count: int, smallest: int, needed: int) -> float:
    """The probability that at least `needed` of `count` draws are among the `smallest` smallest."""
    share = smallest / count
    return math.fsum(
        math.comb(count, hits) * share**hits * (1 - share) ** (count - hits) for hits in range(needed, count + 1)
    )


def differ(old: Estimate, new: Estimate, threshold: float) -> bool:
    """Whether the two are really apart: their intervals do not meet, and the medians differ by at
    least `threshold` (a share of the old one), which is what a machine drifts between two runs.

    Intervals of 95 % that do not meet are a stricter test than 5 %: of two equal medians fewer than
    one pair in a hundred does that by chance.
    """
    apart = new.low > old.high or new.high < old.low
    return apart and abs(new.median / old.median - 1) >= threshold if old.median else apart
