"""Call something several times, from one thread or several, and take the times."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

now = time.perf_counter
Model = dict[str, Any] | None  # settings of configure_lm
Call = Callable[[str, Any], Any]
Run = Callable[[str, Any, int, int], tuple[float, list[float]]]
"""Makes `calls` calls of a command with args, `width` at a time; returns the seconds of all, and of each."""


def on_threads(call: Call) -> Run:
    """Return a function that calls from threads, or from the main one if only one call is made at a time."""

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        if width == 1:
            start, times = now(), timed(call, command, args, calls)
            return now() - start, times
        ready, results = threading.Barrier(width), queue.SimpleQueue[tuple[float, float, list[float]]]()

        def work() -> None:
            ready.wait()
            start, times = now(), timed(call, command, args, calls // width)
            results.put((start, now(), times))

        for _ in range(width):
            threading.Thread(target=work).start()
        starts, ends, times = zip(*(results.get(timeout=60.0) for _ in range(width)), strict=True)
        return max(ends) - min(starts), flat(times)

    return run


def timed(call: Call, command: str, args: Any, calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = now()
        call(command, args)
        times.append(now() - start)
    return times


def flat(lists: Iterable[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(lists))
