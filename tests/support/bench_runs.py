"""Runs of the benchmark with the smallest settings."""

from __future__ import annotations

import random
from pathlib import Path

from bridge.bench import Payload, formats
from bridge.bench.case import Case
from bridge.bench.estimates import estimate
from bridge.bench.format import reason_of
from bridge.bench.report import Cell, FormatInfo, PayloadInfo, Report

TINY = {"starts": 1, "rounds": 3, "budget": 0.0005, "quick": True}


SUPPORT = Path(__file__).parent


# The reason why each of these formats is N/A with `ping`.
OWN = {
    "Literal": None,
    "Rounding": "comes back changed: $.id: 17 became 17.0",
    "Raising": "RuntimeError: no such luck",
    "Refusing": "not on a Sunday",
    "Missing": "a_library_that_is_not_there is not installed",
    "Dying": "its worker ended (7)",
    "Failing": "its worker ended (1): ValueError: worse over there",
    "Fickle": "comes back changed from the worker: $: a key 'more' appeared",
}


def reason_against(format: str, payload: Payload) -> str | None:
    """Return why a format is N/A with a payload, or None."""
    try:
        case = Case(formats.load(format), payload)
        case.check()
    except Exception as error:
        return reason_of(error)
    assert case.check_typed() is None
    assert case.sizes()["bytes"] > 0
    return None


def synthetic(seed: int | str, **shift: float) -> Report:
    """Return a report of ten formats that take 1000 ns with 2 % noise. shift: factors by name."""
    rng = random.Random(seed)
    names = [f"f{index}" for index in range(10)]
    cells = []
    for name in names:
        middle = 1000 * shift.get(name, 1.0)
        samples = [rng.gauss(middle, 0.02 * middle) for _ in range(9)]
        cells.append(Cell(name, "p", bytes=1.0, times={"trip_total": estimate(samples)}))
    return Report(
        **{
            "made": "",
            "seconds": 1.0,
            "quick": False,
            "options": {"starts": 9, "rounds": 5},
            "machine": {},
        },
        formats=[FormatInfo(name, "", "untyped", "", {}) for name in names],
        payloads=[PayloadInfo("p", "", 1)],
        cells=cells,
    )


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
