"""Compare program types and batches with the same of DSPy in the caller's own process, for one build or several.

The model answers at once, in the process that runs DSPy: what is compared is everything but the model.

    python benchmarks/dspy_calls.py [old=/path/to/old/bin/python new=.venv/bin/python] [--quick] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from client import Host
from comparison import Builds, Goal, Make, Section, main, ratio
from dspy_peers import ANSWERS, MODULES

COMMAND = "execute_program"
DIRECT = "direct DSPy"
CALLERS = 64
ONE = {"width": 1, "calls": 200}
ROWS = {"width": 8, "calls": 10_000}
PARALLEL, EVENTS = "dspy.Parallel", ", as events"
MANY = {"width": CALLERS, "calls": CALLERS * 8}


def one_caller(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield one call at a time of each type."""
    for kind, hosts in _hosts(builds, stack).items():
        contenders = {name: partial(host.run, COMMAND, **ONE) for name, host in hosts.items()}
        goal = Goal(f"{kind}, one caller, x {DIRECT}", ratio(DIRECT, "p50_us"), 1.15)
        yield Section("one_caller", f"{kind}, one caller", contenders, ("p50_us", "cpu_us"), 9, DIRECT, (goal,))


def callers(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield calls of each type from many threads."""
    for kind, hosts in _hosts(builds, stack).items():
        contenders = {name: partial(host.run, COMMAND, **MANY) for name, host in hosts.items()}
        title = f"{kind}, {CALLERS} callers"
        goal = Goal(f"{title}, throughput x {DIRECT}", lambda r, b: r[DIRECT]["us"] / r[b]["us"], 1.0, least=True)
        yield Section("callers", title, contenders, ("us", "cpu_us"), 5, DIRECT, (goal,))


def batch(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield a program on many rows, beside DSPy's Parallel; the results are in the reply, or events only."""
    model = {"provider": "scripted", "answers": {"": ANSWERS}}
    kinds = {"": "batch", EVENTS: "batch_events"}
    hosts = {f"{name}{end}": (python, kind) for name, python in builds.items() for end, kind in kinds.items()}
    hosts |= {PARALLEL: (sys.executable, "parallel")}
    contenders = {
        name: partial(stack.enter_context(Host(*host, model)).run, COMMAND, **ROWS) for name, host in hosts.items()
    }
    title = f"execute_batch, {ROWS['calls']} rows, {ROWS['width']} threads"
    goals = [
        Goal(
            f"{title}{end}, throughput x {PARALLEL}",
            lambda rows, build, end=end: rows[PARALLEL]["us"] / rows[build + end]["us"],
            0.95,
            least=True,
        )
        for end in kinds
    ]
    goals += [
        Goal(
            f"{title}{end}, memory that it leaves to the worker",  # beyond what a tenth of the rows had left
            lambda rows, build, end=end: rows[build + end]["grown_mib"],
            4.0,
            "MiB",
        )
        for end in kinds
    ]
    yield Section("batch", title, contenders, ("us", "cpu_us", "grown_mib"), 5, PARALLEL, tuple(goals))


def _hosts(builds: Builds, stack: ExitStack) -> dict[str, dict[str, Host]]:
    """Return the hosts of each type: DSPy, and a client of each build."""
    hosts: dict[str, dict[str, Host]] = {}
    for kind in MODULES:
        model = {"provider": "scripted", "answers": {"": ANSWERS}, "program": {"program_type": kind}}
        contenders = {DIRECT: (sys.executable, "dspy")} | {name: (python, "bridge") for name, python in builds.items()}
        hosts[kind] = {name: stack.enter_context(Host(*each, model)) for name, each in contenders.items()}
    return hosts


WHAT: tuple[Make, ...] = (one_caller, callers, batch)
MAKERS = {make.__name__: make for make in WHAT}

if __name__ == "__main__":
    main("Compare program types with direct DSPy.", MAKERS)
