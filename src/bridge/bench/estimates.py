"""Medians with confidence intervals, and whether two of them differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

CONFIDENCE = 0.95


class Estimate(msgspec.Struct, frozen=True):
    """The median of samples, and the interval that contains the true median with CONFIDENCE."""

    median: float
    low: float
    high: float
    samples: list[float]


def estimate(samples: Sequence[float]) -> Estimate:
    """Return the median, with the percentile interval of its bootstrap.

    The bootstrap is computed exactly, not by drawing: the median of a resample (for an even n, its
    lower and upper middle) is at most the k-th smallest sample if at least as many draws as it takes
    to reach the middle are among the k smallest. That is a binomial probability, which infinitely
    many resamples would approach. (Efron 1979; Maritz and Jarrett 1978.)
    With one sample the interval is that sample, and means nothing.
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
    """Return the probability that at least `needed` of `count` draws are among the `smallest` smallest."""
    share = smallest / count
    return math.fsum(
        math.comb(count, hits) * share**hits * (1 - share) ** (count - hits) for hits in range(needed, count + 1)
    )


def differ(old: Estimate, new: Estimate, threshold: float) -> bool:
    """Return whether two medians really differ: their intervals do not overlap, and they differ by `threshold`.

    threshold: as a share of the old median; a machine drifts that much between two runs.
    That 95 % intervals do not overlap is a stricter test than 5 %: it happens by chance for less
    than 1 % of equal medians.
    """
    is_separate = new.low > old.high or new.high < old.low
    return is_separate and abs(new.median / old.median - 1) >= threshold if old.median else is_separate
