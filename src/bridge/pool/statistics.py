"""The statistics of several workers as those of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from bridge._histogram import Histogram

INCLUDED = ("commands", "histograms", "worker", "process")  # what each worker is asked for
SUMS = ("in_flight", "queue_depth")
SUMMED_RESOURCES = ("rss", "vms", "cpu_user", "cpu_system", "threads", "fds")


def merged(workers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics of a pool from what `get_stats` with `INCLUDED` has returned in each worker."""
    return {**_sums(workers), "workers": [{**stats["worker"], "process": stats["process"]} for stats in workers]}


def merged_pools(pools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the statistics of several pools, each as `merged` returns them, as those of one."""
    return {**_sums(pools), "workers": [worker for stats in pools for worker in stats["workers"]]}


def _sums(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    names = sorted({name for stats in parts for name in stats["commands"]})
    return {
        "commands": {
            name: _command([stats["commands"][name] for stats in parts if name in stats["commands"]]) for name in names
        },
        "process": {name: sum(stats["process"][name] for stats in parts) for name in SUMMED_RESOURCES},
    }


def _command(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    windows = entries[0]["windows"]
    return {
        **_summary(entry["histogram"] for entry in entries),
        "errors_by_category": _sum(entry["errors_by_category"] for entry in entries),
        "counters": _sum(entry["counters"] for entry in entries),
        **{name: sum(entry[name] for entry in entries) for name in SUMS},
        "windows": {
            name: {
                "seconds": max(entry["windows"][name]["seconds"] for entry in entries),
                **_summary(entry["windows"][name]["histogram"] for entry in entries),
            }
            for name in windows
        },
    }


def _summary(histograms: Iterable[dict[str, Any]]) -> dict[str, Any]:
    total = Histogram()
    for histogram in histograms:
        total.merge(Histogram.from_dict(histogram))
    return {**total.summary(), "histogram": total.to_dict()}


def _sum(counts: Iterable[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)
