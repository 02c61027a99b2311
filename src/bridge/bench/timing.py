"""The time of one call, measured over many."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

BATCHES = 5  # a figure is the median of this many means


def timed(call: Callable[[Any], Any], inputs: list[Any], budget: float) -> float:
    """Return the ns that a call takes, warm: the median of BATCHES batches.

    budget: seconds; a tenth of it is spent on warming up.
    """
    now, count, started = time.perf_counter_ns, 0, time.perf_counter_ns()
    while count == 0 or now() - started < budget * 1e8:
        for given in inputs:
            call(given)
        count += len(inputs)
    each = (now() - started) / count
    batch = inputs * max(1, int(budget * 1e9 / BATCHES / each / len(inputs)))
    means = []
    for _ in range(BATCHES):
        started = now()
        for given in batch:
            call(given)
        means.append((now() - started) / len(batch))
    return statistics.median(means)


def timed_once(call: Callable[[Any], Any], make: Callable[[int], Any], count: int, size: int, budget: float) -> float:
    """Return the ns that a call takes, as `timed` does, with inputs that are used only once.

    They are `make(0)` to `make(count - 1)`, repeatedly, made outside the measured time, `size` at once.
    """
    now = time.perf_counter_ns

    def mean(limit: float) -> float:
        spent = calls = 0
        while not calls or spent < limit:
            for first in range(0, count, size):
                inputs = [make(index) for index in range(first, min(first + size, count))]
                started = now()
                for given in inputs:
                    call(given)
                spent += now() - started
            calls += count
        return spent / calls

    mean(budget * 1e8)
    return statistics.median(mean(budget * 1e9 / BATCHES) for _ in range(BATCHES))
