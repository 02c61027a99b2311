"""The options of a pool."""

from __future__ import annotations

import os
from typing import Any

from bridge.host.timeouts import seconds_of
from bridge.pool.upkeep import Life

Workers = int | tuple[int, int]


def checked(
    workers: Workers | None,
    affinity: str,
    isolate: str | None,
    session_workers: int,
    idle: float | None,
    max_requests: int | None,
    max_age: float | None,
    max_rss: int | None,
    on_event: Any,
) -> tuple[tuple[int, int], Life, bool]:
    """Return the bounds of the number of workers, their `Life`, and whether each session has one of its own.

    The options are those of `Pool`. Raises TypeError and ValueError.
    """
    bounds = _bounds(workers)
    if affinity not in ("strict", "hint"):
        raise ValueError(f'affinity must be "strict" or "hint", not {affinity!r}')
    if isolate not in (None, "session"):
        raise ValueError(f'isolate must be "session" or None, not {isolate!r}')
    isolates = isolate == "session"
    _check_count("session_workers", session_workers)
    for name, number in (("max_requests", max_requests), ("max_rss", max_rss)):
        if number is not None:
            _check_count(name, number)
    if on_event is not None and not callable(on_event):
        raise TypeError(f"on_event must be a function, not {on_event!r}")
    idle = seconds_of((3600.0 if isolates else 30.0) if idle is None else idle, "idle")
    return bounds, Life(idle, max_requests, seconds_of(max_age, "max_age"), max_rss), isolates


def _check_count(name: str, number: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be a whole number, not {number!r}")
    if number < 1:
        raise ValueError(f"{name} must be at least 1, not {number!r}")


def _bounds(workers: Workers | None) -> tuple[int, int]:
    """Return the least and the largest number of workers. Raises TypeError and ValueError."""
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    bounds = (workers, workers) if isinstance(workers, int) else workers
    if not isinstance(bounds, tuple) or [type(bound) for bound in bounds] != [int, int]:
        raise TypeError(f"workers must be a number, or (at least, at most), not {workers!r}")
    least, most = bounds
    if not 1 <= least <= most:
        raise ValueError(f"workers must be at least 1, and not more than the largest number, not {workers!r}")
    return least, most
