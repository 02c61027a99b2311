"""Reports how far an optimization is, as `progress` events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

MOST_EVENTS = 100  # of one pass over rows


class Progress:
    """How far an optimization is.

    best: the best score of a candidate on all rows that count; None before the first one. candidates: how many programs
    have been scored.
    """

    def __init__(self, emit: Callable[[str, dict[str, Any]], None]) -> None:
        self._emit = emit
        self.best: float | None = None
        self.candidates = 0

    def report(self, phase: str, done: int, total: int, **more: Any) -> None:
        """Emit an event, unless there are too many of them."""
        if done in (0, total) or total <= MOST_EVENTS or done % (total // MOST_EVENTS) == 0:
            known = {"best": self.best, **more}
            given = {name: value for name, value in known.items() if value is not None}
            self._emit("progress", {"phase": phase, "done": done, "total": total, **given})

    def scores(self, phase: str, total: int, *, counts: bool) -> Callable[[float], None]:
        """Return a function that takes the score of each of `total` rows in turn, and reports the average so far.

        counts: whether the average of all rows may be the best score.
        """
        candidate = None
        if phase == "candidate":
            self.candidates += 1
            candidate = self.candidates
        done, points = 0, 0.0

        def add(score: float) -> None:
            nonlocal done, points
            done += 1
            points += score
            average = points / done
            if counts and done == total and (self.best is None or average > self.best):
                self.best = average
            self.report(phase, done, total, score=average, candidate=candidate)

        return add
