"""Measure concurrent calls, beside baselines of the same run. `README.md` explains the sections.

A contender is a callable that runs one round and returns its figures. The contenders of a section
take turns, round by round; a figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from concurrency_host import (
    ADAPTER,
    GAP,
    HEARTBEAT,
    INSTANT,
    PING,
    PROGRAM,
    WIDTH,
    Figures,
    Peer,
    Raw,
    Target,
    configured,
    cpu_seconds,
    flood,
    lateness,
    once,
    reached,
    rss,
    served,
    spread,
    switches,
    together,
    verdict,
)
from concurrency_peers import SLOW, now
from roundtrip import medians

from bridge import Client
from bridge.version import __version__

Rows = dict[str, Figures]  # by contender
Contenders = dict[str, Callable[[], Figures]]

MANY = 1000  # threads


class Section(NamedTuple):
    title: str
    contenders: Contenders
    targets: Callable[[Rows], list[Target]]
    rounds: int


def load(quick: bool, stack: ExitStack) -> Section:
    raw, peer = stack.enter_context(Raw("dspy")), stack.enter_context(Raw(ADAPTER))
    client = stack.enter_context(configured(INSTANT))
    for command, args in (("configure_lm", INSTANT), ("create_program", PROGRAM)):
        raw.call(command, args)
    seconds, queue = (1.0, 1000) if quick else (3.0, 4000)

    def pings(busy: bool) -> Figures:
        until, times = now() + seconds, []
        done = flood(client, sys.maxsize if busy else 0, lambda: now() > until)
        while now() < until:
            time.sleep(GAP)
            start = now()
            client.call("ping")
            times.append(now() - start)
        assert done.wait(60.0)
        return spread(times)

    refilled = partial(raw.probe, seconds=seconds, calls=WIDTH, refill=True)
    queued = partial(raw.probe, seconds=60.0, calls=queue)
    contenders: Contenders = {
        "idle: ping, Python client": partial(pings, False),
        "idle: ping": partial(raw.probe, PING, seconds),
        "idle: heartbeat": partial(raw.probe, HEARTBEAT, seconds),
        "64 kept in flight: ping, Python client": partial(pings, True),
        "64 kept in flight: ping": partial(refilled, PING),
        "64 kept in flight: heartbeat": partial(refilled, HEARTBEAT),
        "64 threads, queue sent before: ping": partial(queued, PING),
        "64 threads, queue sent before: heartbeat": partial(queued, HEARTBEAT),
        "64 threads, queue sent before: heartbeat of an idle worker": partial(queued, HEARTBEAT, at=peer),
        "GIL held: heartbeat": peer.held,
        "GIL held: heartbeat after a ping": partial(peer.held, PING),
    }
    responsive = ("64 threads, queue sent before: heartbeat", "GIL held: heartbeat")

    def targets(rows: Rows) -> list[Target]:
        return [Target(f"{name}, p99_us", rows[name]["p99_us"], 1000) for name in responsive]

    return Section("latency, idle and under load", contenders, targets, 1 if quick else 3)


def endings(quick: bool, stack: ExitStack) -> Section:
    port = stack.enter_context(Peer("serve")).line()
    threads = ["--threads", str(MANY)]  # a call that ends early occupies its thread for a while
    echo = stack.enter_context(Client.start(adapter="echo", flags=threads))
    http = stack.enter_context(configured(served(port, SLOW), *threads))
    asleep, model = partial(lateness, echo, "sleep"), partial(lateness, http, "execute_program")
    calls = 20 if quick else 100
    contenders: Contenders = {
        "deadline, a handler that sleeps": partial(asleep, calls, 1, False),
        "deadline, 64 of them": partial(asleep, calls, WIDTH, False),
        "deadline, a model over HTTP": partial(model, calls, 1, False),
        "deadline, 64 of them over HTTP": partial(model, calls, WIDTH, False),
        "cancel, a handler that sleeps": partial(asleep, calls, 1, True),
        "cancel, 64 of them": partial(asleep, calls, WIDTH, True),
        "cancel, a model over HTTP": partial(model, calls, 1, True),
        "cancel, 64 of them over HTTP": partial(model, calls, WIDTH, True),
    }

    def targets(rows: Rows) -> list[Target]:
        return [Target(f"{name}, p99_ms", row["p99_ms"], 5.0) for name, row in rows.items()]

    title = "from the deadline, or from cancel(), to the caller's error"
    return Section(title, contenders, targets, 1 if quick else 3)


def in_flight(quick: bool, stack: ExitStack) -> Section:
    port = stack.enter_context(Peer("serve")).line()
    peer = stack.enter_context(Peer("direct", port))
    threads = ["--threads", str(MANY)]
    echo = stack.enter_context(Client.start(adapter="echo", flags=threads))
    slow = stack.enter_context(Client.start(adapter=ADAPTER, flags=threads))
    together(slow, "slow_lm", 1)
    http = stack.enter_context(configured(served(port, SLOW), *threads))
    contenders: Contenders = {}
    for count in (1, MANY) if quick else (1, 10, 100, MANY):
        for name, call, client, command in (
            ("sleep", "sleep", echo, "sleep"),
            ("DSPy, in process", "slow", slow, "slow_lm"),
            ("DSPy, over HTTP", "http", http, "execute_program"),
        ):
            contenders[f"{name}, direct, {count}"] = partial(once, peer, call, count)
            contenders[f"{name}, bridge, {count}"] = partial(together, client, command, count)

    def targets(rows: Rows) -> list[Target]:
        took = {name: row["s"] for name, row in rows.items()}
        http = took[f"DSPy, over HTTP, bridge, {MANY}"] / took[f"DSPy, over HTTP, direct, {MANY}"]
        ours = (f"{kind}, bridge, {MANY}" for kind in ("sleep", "DSPy, in process"))
        absolute = [Target(f"{name}, s", took[name], 2.0) for name in ours]
        return [*absolute, Target(f"DSPy, over HTTP, {MANY}, x direct", http, 1.2)]

    title = f"calls at once of a model that answers after {SLOW} ms"
    return Section(title, contenders, targets, 1 if quick else 3)


def idle_thread(quick: bool, stack: ExitStack) -> Section:
    count = 200 if quick else MANY

    def parked(process: Any, run: Callable[[Any, int], object]) -> Figures:
        with process() as it:
            run(it, 1)
            before = rss(it.pid)
            run(it, count)
            grown, cpu, wakes = rss(it.pid) - before, cpu_seconds(it.pid), switches(it.pid)
            time.sleep(2.0)
            cpu, wakes = cpu_seconds(it.pid) - cpu, switches(it.pid) - wakes
            return {
                "kib": grown / count / 1024,
                "cpu_ms_per_s": cpu * 500,
                "wakes_per_s": wakes / 2,
            }

    def worker(adapter: str) -> Callable[[], Client]:
        return partial(Client.start, adapter=adapter, flags=["--threads", str(count)])

    contenders: Contenders = {}
    for name, call, adapter, command in (
        ("after time.sleep", "sleep", "echo", "sleep"),
        ("after DSPy", "slow", ADAPTER, "slow_lm"),
    ):
        run = partial(lambda call, peer, n: once(peer, call, n), call)
        contenders[f"direct, {name}"] = partial(parked, partial(Peer, "direct"), run)
        run = partial(lambda command, client, n: together(client, command, n), command)
        contenders[f"bridge, {name}"] = partial(parked, worker(adapter), run)
    title = f"each of {count} idle threads that ran once"
    return Section(title, contenders, lambda _: [], 1 if quick else 2)


SECTIONS = (load, endings, in_flight, idle_thread)


def measure(section: Section) -> dict[str, list[Figures]]:
    samples: dict[str, list[Figures]] = {name: [] for name in section.contenders}
    for _ in range(section.rounds):
        for name, contender in section.contenders.items():
            samples[name].append(contender())
    return samples


def table(section: Section, rows: Rows) -> str:
    lines = [f"\n{section.title} (median of {section.rounds} rounds)"]
    lines.append(" " * 44 + "".join(f"{name:>14}" for name in next(iter(rows.values()))))
    for name, row in rows.items():
        cells = (f"{value:14,.0f}" if value >= 1000 else f"{value:14.3f}" for value in row.values())
        lines.append(f"{name:44}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure concurrent calls.")
    parser.add_argument("--json", metavar="FILE", help="write the figures of all rounds there")
    parser.add_argument("--quick", action="store_true", help="fewer calls and rounds")
    parser.add_argument("--only", metavar="SECTION", help="see benchmarks/README.md")
    options = parser.parse_args()
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "no_proxy": "127.0.0.1"}
    machine = {"python": platform.python_version(), "cores": os.cpu_count()}
    report: dict[str, Any] = {"bridge": __version__, **machine, "sections": [], "targets": []}
    verdicts = []
    for make in SECTIONS:
        name = make.__name__
        if options.only not in (None, name):
            continue
        with ExitStack() as stack:
            section = make(options.quick, stack)
            samples = measure(section)
        rows = medians(samples)
        print(table(section, rows), flush=True)
        report["sections"].append({"name": name, "medians": rows, "rounds": samples})
        for target in section.targets(rows):
            verdicts.append(verdict(name, target))
            report["targets"].append({**target._asdict(), "reached": reached(target)})
    print("\nTargets", *verdicts, sep="\n")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
