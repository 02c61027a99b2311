"""Compare installed builds with each other and with baselines: what `builds.py`, `client.py` and `programs.py` share.

A contender is a callable that runs one round and returns its figures. The contenders of a section take turns, round by
round, and every ratio or difference is between figures of the same round; the median of the rounds is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from roundtrip import Figures, Samples, medians

# Neither LiteLLM's list of prices is fetched, nor is a proxy used.
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "127.0.0.1"}

SPIN = """
import os, pathlib, sys
autogroup, parent = pathlib.Path("/proc/self/autogroup"), os.getppid()
os.sched_setaffinity(0, [int(sys.argv[1])])
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
if autogroup.exists():
    autogroup.write_text("19")
while os.getppid() == parent:
    pass
"""

Builds = dict[str, str]  # interpreter by name
Round = dict[str, Figures]  # by contender
Quartiles = tuple[float, float, float]


class Goal(NamedTuple):
    """A figure that each build has a value of, computed from the figures of a round and the build's name.

    limit: an upper one, or a lower one with `least`.
    """

    title: str
    value: Callable[[Round, str], float]
    limit: float
    unit: str = "x"
    least: bool = False


class Section(NamedTuple):
    """Contenders that do the same work. Those that are builds have the names of the builds.

    group: of sections that share a table. figures: what is printed; the first one is in that table.
    baseline: the contender that every other is also compared with. awake: whether no core may sleep
    during a round. has_many: whether all contenders are named "BUILD: KIND".
    """

    group: str
    title: str
    contenders: dict[str, Callable[[], Figures]]
    figures: tuple[str, ...]
    rounds: int
    baseline: str = ""
    goals: tuple[Goal, ...] = ()
    awake: bool = False
    has_many: bool = False


Make = Callable[[Builds, ExitStack], Iterable[Section]]


def difference(baseline: str, figure: str) -> Callable[[Round, str], float]:
    return lambda rows, build: rows[build][figure] - rows[baseline][figure]


def ratio(baseline: str, figure: str, suffix: str = "") -> Callable[[Round, str], float]:
    """suffix: of the contender's name, which begins with the build's."""
    return lambda rows, build: rows[build + suffix][figure] / rows[baseline][figure]


@contextmanager
def cores_awake() -> Iterator[None]:
    """Keep every core from sleeping, with a process on each that gives way to any other at once."""
    python = [sys.executable, "-c", SPIN]
    # In a session of its own, because Linux weighs sessions against each other ("autogroup"), and only then processes.
    spinners = [
        subprocess.Popen([*python, str(core)], start_new_session=True) for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


def measure(section: Section) -> Samples:
    samples: Samples = {name: [] for name in section.contenders}
    with ExitStack() as stack:
        if section.awake:
            stack.enter_context(cores_awake())
        for _ in range(section.rounds):
            for name, contender in section.contenders.items():
                samples[name].append(contender())
    return samples


def quartiles(values: list[float]) -> Quartiles:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(samples: Samples, name: str, baseline: str, figure: str) -> Quartiles:
    """Return the quartiles of the rounds' ratios: `name` in units of `baseline`."""
    pairs = zip(samples[name], samples[baseline], strict=True)
    return quartiles([one[figure] / other[figure] for one, other in pairs])


def values_of(goal: Goal, samples: Samples, builds: Builds) -> dict[str, Quartiles]:
    """Return the goal's value for each build that has the contenders it needs."""
    rounds = [dict(zip(samples, rows, strict=True)) for rows in zip(*samples.values(), strict=True)]
    found = {}
    for build in builds:
        with suppress(KeyError):
            found[build] = quartiles([goal.value(rows, build) for rows in rounds])
    return found


def table(section: Section, samples: Samples, builds: list[str]) -> str:
    """Return a line for each contender and figure: best, median and middle half of the rounds, ratios."""
    lines = [f"\n{section.title} ({section.rounds} rounds)"]
    lines.append(f"{'':42}{'best':>10}{'median':>11}{'middle half':>24}   median of the rounds' ratios [middle half]")
    for figure in section.figures:
        for name, rounds in samples.items():
            if figure not in rounds[0]:
                continue
            values = [r[figure] for r in rounds]
            low, middle, high = quartiles(values)
            line = f"{figure:14}{name:28}{min(values):10.3f}{middle:11.3f}{f'{low:.3f} - {high:.3f}':>24}"
            for baseline in (section.baseline, builds[0]):
                if baseline in samples and baseline != name and (baseline == section.baseline or name in builds):
                    low, middle, high = ratios(samples, name, baseline, figure)
                    line += f"   {middle:.3f} x {baseline} [{low:.3f} - {high:.3f}]"
            lines.append(line)
    return "\n".join(lines)


def tables(sections: list[tuple[Section, Samples]]) -> dict[str, str]:
    """Return a table in Markdown for each group of sections: the medians of the first figure."""
    texts = {}
    for group in dict.fromkeys(section.group for section, _ in sections):
        rows: dict[str, dict[str, str]] = {}
        for section, samples in sections:
            if section.group == group:
                for contender, figures in medians(samples).items():
                    add_cells(rows, section, contender, figures)
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        texts[group] = markdown(["", *columns], ([title, *map(row.get, columns)] for title, row in rows.items()))
    return texts


def markdown(head: list[str], rows: Iterable[list[str | None]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell or "" for cell in line) + " |" for line in lines)


def add_cells(rows: dict[str, dict[str, str]], section: Section, contender: str, figures: Figures) -> None:
    """Add a contender's figure to the rows of a table. Its column is the build if each build has many contenders."""
    column, _, kind = contender.partition(": ") if section.has_many else (contender, "", "")
    figure = section.figures[0]
    value, unit = figures[figure], figure.rpartition("_")[2].replace("us", "µs")
    cell = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    if "threads" in section.figures:
        cell += f" ({figures['threads']:.0f} thread{'s' * (figures['threads'] > 1)})"
    rows.setdefault(", ".join(filter(None, (section.title, kind, unit))), {})[column] = cell


def goal_table(goals: list[tuple[Goal, dict[str, Quartiles]]], builds: Builds) -> str:
    """Return a table in Markdown: each build's value of each goal, and whether the last build reaches the limit."""
    head = ["", *builds, "target", ""]
    rows = ([g.title, *(spread(v.get(b)) for b in builds), target(g), verdict(g, v, builds)] for g, v in goals)
    return markdown(head, rows)


def spread(values: Quartiles | None) -> str:
    return f"{values[1]:.3g} ({values[0]:.3g} to {values[2]:.3g})" if values else ""


def fill(document: Path, tables: dict[str, str]) -> None:
    """Replace the tables of a document, each between `<!-- measured: NAME -->` and `<!-- end -->`."""
    text = document.read_text()
    for name, table in tables.items():
        before, start, rest = text.partition(f"<!-- measured: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if end:
            text = before + start + table.replace(" x ", " \u00d7 ") + "\n" + end + after
    document.write_text(text)


def target(goal: Goal) -> str:
    return f"{'≥' if goal.least else '≤'} {goal.limit:g} {goal.unit}"


def verdict(goal: Goal, values: dict[str, Quartiles], builds: Builds) -> str:
    last = list(builds)[-1]
    if last not in values:
        return ""
    value = values[last][1]
    return "reached" if (value >= goal.limit if goal.least else value <= goal.limit) else "missed"


def build_of(text: str) -> tuple[str, str]:
    """Return name and interpreter of `NAME=PYTHON`, or of a bare `PYTHON`."""
    name, _, python = text.rpartition("=")
    return name or python, python


def package_of(python: str) -> str:
    """Return the folder of the bridge package that an interpreter imports. Raises CalledProcessError."""
    code = "import bridge, os; print(os.path.dirname(bridge.__file__))"
    return subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main(description: str, makers: dict[str, Make], document: Path | None = None) -> None:
    """Measure the sections that `makers` make, or those of one maker, and report them.

    document: whose tables may be replaced.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("builds", nargs="*", metavar="NAME=PYTHON", help="the first one is what others are compared to")
    parser.add_argument("--json", metavar="FILE", help="write the figures of all rounds there")
    if document:
        parser.add_argument("--fill", action="store_true", help=f"replace the tables of {document.name}")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--only", metavar="SECTION", help=", ".join(makers), choices=makers)
    options = parser.parse_args()
    filled = document if document and options.fill else None
    if filled and options.only:
        parser.error("--fill needs the figures of all sections")
    os.environ |= OFFLINE
    builds = dict(map(build_of, options.builds or [f"bridge={sys.executable}"]))
    packages = {name: package_of(python) for name, python in builds.items()}
    if len(set(packages.values())) < len(options.builds):
        sys.exit(f"two builds have the same package or name: {packages}")
    report: dict[str, Any] = {"system": platform.platform(), "cores": os.cpu_count(), "builds": packages}
    report |= {"sections": [], "goals": []}
    measured, goals = [], []
    for name, make in makers.items():
        if options.only not in (None, name):
            continue
        with ExitStack() as stack:
            for section in make(builds, stack):
                if options.quick:
                    section = section._replace(rounds=max(1, section.rounds // 3))
                samples = measure(section)
                print(table(section, samples, list(builds)), flush=True)
                measured.append((section, samples))
                goals += [(goal, values_of(goal, samples, builds)) for goal in section.goals]
                report["sections"].append(entry(section, samples, builds))
    texts = tables(measured)
    if goals:
        texts["targets"] = goal_table(goals, builds)
    print(*(f"\n{name}\n\n{text}" for name, text in texts.items()), sep="\n")
    if filled:
        fill(filled, texts)
    report["goals"] = [{"title": g.title, "target": target(g), "values": v} for g, v in goals]
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


def entry(section: Section, samples: Samples, builds: Builds) -> dict[str, Any]:
    first = next(iter(builds))
    compared = {
        name: {figure: ratios(samples, name, first, figure) for figure in section.figures}
        for name in builds
        if name in samples and first in samples
    }
    head = {"group": section.group, "title": section.title, "medians": medians(samples)}
    return {**head, "ratios": compared, "rounds": samples}
