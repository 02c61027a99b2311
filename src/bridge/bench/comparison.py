"""Find the figures that really changed between the runs of two builds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

import msgspec

from bridge.bench.estimates import Estimate, differ
from bridge.bench.report import Cell, Report

RUNS = 3  # runs of each build that show how much equal runs differ
# The share by which figures of a machine drift between two runs. Runs of one start each differed by up
# to a fifth: their intervals do not include the influence of memory addresses and hash seeds.
DRIFT, DRIFT_OF_ONE_START = 0.05, 0.25


class Change(msgspec.Struct):
    """A figure that differs between two builds.

    old, new: medians in ns over all runs of a build. ratio: new divided by old, None if a cell has
    become N/A or is no longer N/A, which `reason` explains.
    """

    format: str
    payload: str
    step: str
    old: float | None
    new: float | None
    ratio: float | None = None
    reason: str = ""

    @property
    def is_worse(self) -> bool:
        """Return whether the new build is slower, or N/A."""
        if self.ratio is None:
            return not self.reason.startswith(NO_LONGER)
        return self.ratio > 1


NO_LONGER = "no longer N/A"


class Comparison(msgspec.Struct):
    """The result of `compare`.

    changes: the real differences. uncertain: differences between too few runs to call them real.
    compared: the number of figures that both builds have. unlike: other differences between the runs
    (machine, versions, options), which may be the cause; and payloads that were not compared, with
    the reason. threshold: the least difference that counts, as a share of the old figure.
    runs: the numbers of old and of new runs.
    """

    changes: list[Change]
    uncertain: list[Change]
    compared: int
    threshold: float
    unlike: list[str]
    runs: tuple[int, int]

    @property
    def exit_status(self) -> int:
        """Return 3 if something is worse, 4 if there are too few runs to know, else 0."""
        if any(change.is_worse for change in self.changes):
            return 3
        return 4 if any(change.is_worse for change in self.uncertain) else 0


def compare(old: Report | Sequence[Report], new: Report | Sequence[Report]) -> Comparison:
    """Compare the runs of one build with those of another.

    With at least RUNS of each, a difference is real if every new run differs from every old run by
    more than the threshold, and by more than any two runs of one build differ in that step, with
    any format or payload. With fewer runs, the differences that `estimates.differ` finds are uncertain.

    Payloads whose messages differ, or whose text was measured by another method, are not compared.
    Raises ValueError if a side is empty.
    """
    olds, news = ([side] if isinstance(side, Report) else [*side] for side in (old, new))
    if not olds or not news:
        raise ValueError("at least one run of each build is needed")
    every = [*olds, *news]
    threshold = DRIFT_OF_ONE_START if _of_one_start(every) else DRIFT
    unlike, excluded = _unlike_runs(olds, news)
    changes: list[Change] = []
    figures: list[_Figure] = []
    for cell in news[0].cells:
        if cell.payload in excluded:
            continue
        cells = [run.cell(cell.format, cell.payload) for run in every]
        found = [each for each in cells if each is not None]
        if len(found) < len(every):
            continue
        before, after = found[: len(olds)], found[len(olds) :]
        changes += _availability(before, after)
        figures += _figures(before, after)
    enough = min(len(olds), len(news)) >= RUNS
    differing = [*(_real(figures, threshold) if enough else _maybe(figures, threshold))]
    return Comparison(
        changes + (differing if enough else []),
        [] if enough else differing,
        len(figures),
        threshold,
        unlike,
        (len(olds), len(news)),
    )


class _Figure(msgspec.Struct):
    """One step of one format with one payload, measured by each run of both builds."""

    format: str
    payload: str
    step: str
    old: list[Estimate]
    new: list[Estimate]

    def medians(self) -> tuple[list[float], list[float]]:
        return [each.median for each in self.old], [each.median for each in self.new]

    def change(self) -> Change:
        was, now = map(median, self.medians())
        return Change(self.format, self.payload, self.step, was, now, now / was)


def _availability(before: list[Cell], after: list[Cell]) -> Iterator[Change]:
    """Yield a change if a cell is N/A in all runs of one build and in none of the other."""
    first, last = before[0], after[0]
    was, now = ({cell.reason is None for cell in side} for side in (before, after))
    if len(was) == len(now) == 1 and was != now:
        reason = last.reason or f"{NO_LONGER} ({first.reason})"
        yield Change(last.format, last.payload, "N/A", None, None, None, reason)


def _figures(before: list[Cell], after: list[Cell]) -> Iterator[_Figure]:
    """Yield the steps that every run measured, with a time above 0."""
    cells = [*before, *after]
    steps = set.intersection(*(set(cell.times) for cell in cells))
    for step in sorted(steps):
        times = [cell.times[step] for cell in cells]
        if all(time.median > 0 for time in times):
            sides = times[: len(before)], times[len(before) :]
            yield _Figure(cells[0].format, cells[0].payload, step, *sides)


def _real(figures: list[_Figure], threshold: float) -> Iterator[Change]:
    noise: defaultdict[str, float] = defaultdict(lambda: 1 + threshold)
    for figure in figures:
        spreads = [max(side) / min(side) for side in figure.medians()]
        noise[figure.step] = max(noise[figure.step], *spreads)
    for figure in figures:
        was, now = figure.medians()
        if max(min(now) / max(was), min(was) / max(now)) > noise[figure.step]:
            yield figure.change()


def _maybe(figures: list[_Figure], threshold: float) -> Iterator[Change]:
    for figure in figures:
        if all(differ(was, now, threshold) for was in figure.old for now in figure.new):
            yield figure.change()


def _of_one_start(runs: list[Report]) -> bool:
    return any(run.options.get("starts") == 1 for run in runs)


def _unlike_runs(olds: list[Report], news: list[Report]) -> tuple[list[str], set[str]]:
    """Return the differences between any run and the first old one, and the payloads not to compare."""
    differences: dict[str, None] = {}
    excluded: set[str] = set()
    for run in [*olds[1:], *news]:
        lines, payloads = _unlike_payloads(olds[0], run)
        differences |= dict.fromkeys([*_unlike(olds[0], run), *lines])
        excluded |= payloads
    return [*differences], excluded


def _unlike_payloads(old: Report, new: Report) -> tuple[list[str], set[str]]:
    """Return lines on differing payloads, and the names of those that cannot be compared."""
    differences, excluded, unknown = [], set(), []
    earlier = {payload.name: payload for payload in old.payloads}
    for payload in new.payloads:
        name = payload.name
        if (before := earlier.get(name)) is None:
            continue
        sizes = {
            cell.format: (was.bytes, cell.bytes)
            for cell in new.cells
            if cell.payload == name and (was := old.cell(cell.format, name)) is not None
            if was.bytes is not None and cell.bytes is not None
        }
        # Sizes in a file are rounded, see `report._rounded`.
        other = {n: (f"{a:.1f}", f"{b:.1f}") for n, (a, b) in sizes.items() if abs(a - b) > 0.1}
        known = before.digest is not None and payload.digest is not None
        differs = before.digest != payload.digest
        if not known:
            # One library may have changed its encoding, but hardly all of them.
            differs = before.messages != payload.messages or (bool(sizes) and len(other) == len(sizes))
        if differs:
            excluded.add(name)
            differences.append(f"{name}: other messages, not compared")
        elif old.method != new.method and True not in (before.ascii, payload.ascii):
            excluded.add(name)
            differences.append(f"{name}: its text was encoded by another method, not compared")
        else:
            differences += [f"bytes of {name} as {n}: {a} → {b}" for n, (a, b) in other.items()]
            unknown += [] if known else [name]
    if unknown:
        differences.append(f"unknown whether the messages are equal: {', '.join(unknown)}")
    return differences, excluded


def _unlike(old: Report, new: Report) -> list[str]:
    pairs: list[tuple[str, Any, Any]] = [
        ("method", old.method, new.method),
        *((key, old.machine.get(key), new.machine.get(key)) for key in ("cpu", "cores", "system")),
        *((key, old.machine.get(key), new.machine.get(key)) for key in ("python", "build", "otp")),
        *(("quick", old.quick, new.quick), ("bridge", old.bridge, new.bridge)),
        *((key, old.options.get(key), new.options.get(key)) for key in ("core", "starts", "rounds")),
        *((key, *_loads(old, new, key)) for key in ("load_before", "load_after")),
    ]
    budgets = old.options.get("budget"), new.options.get("budget")
    if all(budgets):  # files of METHOD 1 have it rounded to nothing
        pairs.append(("budget", *budgets))
    versions = [{n: v for f in r.formats for n, v in f.versions.items()} for r in (old, new)]
    for known, report in zip(versions, (old, new), strict=True):
        known |= {n: v for n, v in report.machine.items() if n == "zstandard"}
    pairs += [(name, versions[0][name], v) for name, v in versions[1].items() if name in versions[0]]
    return [f"{name}: {was} → {now}" for name, was, now in pairs if was != now]


def _loads(old: Report, new: Report, key: str) -> tuple[str, str]:
    """Return the load averages of the last minute, or equal texts if they differ by less than 1."""
    was, now = ((report.machine.get(key) or [0.0])[0] for report in (old, new))
    return (f"{was:.1f}", f"{now:.1f}") if abs(was - now) >= 1 else ("", "")
