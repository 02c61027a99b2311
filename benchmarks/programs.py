"""Compare `execute_program` with DSPy in the caller's own process, for one build or several.

The direct contenders run DSPy as its user does (`dspy` of `client_host.py`). All have a model that answers at once, in
the process that runs DSPy or, over HTTP, in a process of its own.

    python benchmarks/programs.py [old=/path/to/old/bin/python new=.venv/bin/python] [--quick] [--json FILE]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from client import Host
from client_host import SCRIPTED
from comparison import Builds, Figures, Goal, Make, Round, Section, difference, main, ratio
from concurrency_host import Peer, milliseconds, served
from concurrency_peers import DELAY

CALLERS = 64
PIPE, CACHED = ": bare pipe", ": bare pipe, cached"
COMMAND = "execute_program"
ONE = {"width": 1, "calls": 400}
MANY = {"width": CALLERS, "calls": CALLERS * 32}


def one_caller(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield one call at a time: with the Python client, and on a bare pipe with and without a cache of answers."""
    direct = stack.enter_context(Host(sys.executable, "dspy", SCRIPTED))
    contenders = {"direct DSPy": partial(direct.run, COMMAND, **ONE)}
    cached = {**SCRIPTED, "cache": 100}
    for suffix, kind, model in (("", "bridge", SCRIPTED), (PIPE, "pipe", SCRIPTED), (CACHED, "pipe", cached)):
        for name, python in builds.items():
            host = stack.enter_context(Host(python, kind, model))
            contenders[name + suffix] = partial(host.run, COMMAND, **ONE)
    for awake in (False, True):
        title = f"execute_program, one caller, cores {'awake' if awake else 'asleep'}"
        goals = (
            Goal(f"{title}, x direct DSPy", ratio("direct DSPy", "p50_us"), 1.15),
            Goal(f"{title}, bare pipe, x direct DSPy", ratio("direct DSPy", "p50_us", PIPE), 1.15),
            Goal(f"{title}, a cached answer x a scripted one", cached_beside_scripted, 1.0),
        )
        yield Section("one_caller", title, contenders, ("p50_us", "cpu_us"), 9, "direct DSPy", goals, awake)


def cached_beside_scripted(rows: Round, build: str) -> float:
    return rows[build + CACHED]["p50_us"] / rows[build + PIPE]["p50_us"]


def callers(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield many calls in flight: from threads, and of one thread with futures."""
    direct = stack.enter_context(Host(sys.executable, "dspy", SCRIPTED))
    contenders = {
        f"direct DSPy, {CALLERS} threads": partial(direct.run, COMMAND, **MANY),
        "direct DSPy, 1 thread": partial(direct.run, COMMAND, **{**MANY, "width": 1}),
    }
    for suffix, kind in (("", "bridge"), (": futures", "submit")):
        for name, python in builds.items():
            client = stack.enter_context(Host(python, kind, SCRIPTED))
            contenders[name + suffix] = partial(client.run, COMMAND, **MANY)
    baseline = f"direct DSPy, {CALLERS} threads"
    title = f"execute_program, instant model, {CALLERS} callers"
    goals = tuple(
        Goal(
            f"{title}{suffix}, throughput x direct DSPy",
            lambda r, b, suffix=suffix: r[baseline]["us"] / r[b + suffix]["us"],
            1.5,
            least=True,
        )
        for suffix in ("", ": futures")
    )
    yield Section("callers", title, contenders, ("us", "cpu_us"), 7, baseline, goals)


def http(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield one call at a time over HTTP. DSPy searches its list of prices for a model that is not in it, each time."""
    port = stack.enter_context(Peer("serve")).line()
    for kind, name in (("a model with a known price", "gpt-4o-mini"), ("any other model", "chat-0")):
        model = {**served(port, 0), "model": f"openai/{name}"}
        direct = stack.enter_context(Host(sys.executable, "dspy", model))
        contenders = {"direct DSPy": partial(direct.run, COMMAND, **ONE)}
        for build, python in builds.items():
            contenders[build] = partial(stack.enter_context(Host(python, "bridge", model)).run, COMMAND, **ONE)
        title = f"execute_program over HTTP, {kind}"
        goal = Goal(f"{title}, x direct DSPy", ratio("direct DSPy", "p50_us"), 1.15)
        yield Section("http", title, contenders, ("p50_us", "cpu_us"), 9, "direct DSPy", (goal,))


def first_chunk(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    port = stack.enter_context(Peer("serve")).line()
    peer = stack.enter_context(Peer("direct", port))

    def direct(call: str) -> Figures:
        return milliseconds(peer.run(call, calls=10)["firsts"])

    def through(client: Host) -> Figures:
        return {"p50_ms": client.run(COMMAND, calls=10)["p50_us"] / 1000}

    contenders = {
        "the model alone": partial(direct, "first, bare"),
        "DSPy's engine": partial(direct, "first, engine"),
        "direct DSPy": partial(direct, "first, DSPy"),
    }
    for name, python in builds.items():
        contenders[name] = partial(through, stack.enter_context(Host(python, "first_chunk", served(port, DELAY))))
    goal = Goal("first chunk after the model alone", difference("the model alone", "p50_ms"), 1.0, "ms")
    title = f"first chunk of a model that answers after {DELAY} ms"
    yield Section("first_chunk", title, contenders, ("p50_ms",), 9, "the model alone", (goal,))


WHAT: tuple[Make, ...] = (one_caller, callers, http, first_chunk)
MAKERS = {make.__name__: make for make in WHAT}

if __name__ == "__main__":
    main("Compare execute_program with direct DSPy.", MAKERS)
