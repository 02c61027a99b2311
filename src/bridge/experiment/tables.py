"""The results of `evaluate` and `optimize` as text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

WIDTH = 100  # columns
WORST = 10  # rows that are shown, of those with the lowest scores


def evaluation(result: dict[str, Any], rows: list[Any]) -> Iterator[str]:
    """Yield the lines that show the result of `evaluate`. rows: the examples."""
    results = result["results"]
    yield f"score {result['score']:.3f} on {len(results)} examples"
    worst = sorted((each.get("score") or 0.0, index) for index, each in enumerate(results))
    shown = [(score, index) for score, index in worst if score < 1][:WORST]
    if shown:
        yield ""
        yield f"{'row':>5}  {'score':>5}  expected / returned"
    for score, index in shown:
        each = results[index]
        returned = each["outputs"] if "outputs" in each else each.get("error")
        yield f"{index:>5}  {score:>5.2f}  {_short(rows[index].get('outputs', rows[index]))}"
        yield f"{'':>14}{_short(returned)}"


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
