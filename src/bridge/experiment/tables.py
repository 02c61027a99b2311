"""The results of `evaluate` and `optimize` as text."""

from __future__ import annotations

import heapq
import json
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

WIDTH = 100  # columns
WORST = 10  # rows that are shown, of those with the lowest scores


def worst(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the results with the lowest scores, the lowest first. results: each with its `row`."""
    found = heapq.nsmallest(WORST, ((each.get("score") or 0.0, each["row"], each) for each in results))
    return [each for score, _, each in found if score < 1]


def evaluation(score: float, total: int, shown: list[tuple[dict[str, Any], Any]]) -> Iterator[str]:
    """Yield the lines that show the result of `evaluate`. shown: some results, and their examples."""
    yield f"score {score:.3f} on {total} examples"
    if shown:
        yield ""
        yield f"{'row':>5}  {'score':>5}  expected / returned"
    for each, example in shown:
        expected = example.get("outputs", example) if isinstance(example, dict) else example
        yield f"{each['row']:>5}  {each.get('score') or 0.0:>5.2f}  {_short(expected)}"
        yield f"{'':>14}{_short(each['outputs'] if 'outputs' in each else each.get('error'))}"


def optimization(result: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that show the result of `optimize`."""
    before, after = result["score_before"], result["score"]
    yield f"score {before:.3f} -> {after:.3f} ({after - before:+.3f})"
    if not result["changes"]:
        yield "nothing has changed: no candidate was better than the program"
    for change in result["changes"]:
        yield ""
        yield f"predictor {change['predictor']}"
        yield from _change(change)


def _change(change: dict[str, Any]) -> Iterator[str]:
    if "instructions" in change:
        for sign, side in (("-", "before"), ("+", "after")):
            for line in (change["instructions"][side] or "").splitlines() or [""]:
                yield from textwrap.wrap(line, WIDTH - 4, initial_indent=f"  {sign} ", subsequent_indent="    ")
    demos = change.get("demos", [])
    if demos:
        yield f"  {len(demos)} new demos"
        for demo in demos:
            yield f"  + {_fields(demo['inputs'], 60)} -> {_fields(demo['outputs'], 34)}"
    if change.get("removed_demos"):
        yield f"  {change['removed_demos']} demos removed"


def _fields(values: dict[str, Any], width: int) -> str:
    return _short(" | ".join(_text(value) for value in values.values()), width)


def _short(value: Any, width: int = WIDTH - 14) -> str:
    return textwrap.shorten(_text(value), width, placeholder=" …")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
