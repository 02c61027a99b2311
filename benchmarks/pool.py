"""Measure workers that are forked from a template, and pools of workers. `README.md` explains the sections.

python benchmarks/pool.py [--only SECTION] [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from random import choice
from typing import Any

from comparison import Builds, Figures, Goal, Make, Round, Section, main
from concurrency_host import Peer, served
from concurrency_peers import DELAY
from pool_load import EXECUTE, PROGRAMS, prepare
from rounds import now, on_threads, timed
from roundtrip import HERE

from bridge import Client, Pool, errors

OFFLINE = {"provider": "offline"}
MANY = 200  # workers
SPAWNED = 10  # workers that are spawned beside them
MIB = 1 << 20


class Template:
    """A process `bridge serve`, which ends with this one. address: of its socket."""

    def __init__(self, adapter: str) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.address = f"unix:{self._folder.name}/s"
        command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", self.address, "--adapter", adapter]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([*command, "--control", "json", "--quiet"], stdin=pipe, stdout=pipe)
        assert self._process.stdout
        if b"ready" not in self._process.stdout.read1():
            sys.exit("the template did not start")
        threading.Thread(target=self._process.stdout.read, daemon=True).start()
        self.pid = self._process.pid

    def connect(self) -> Client:
        return Client.connect(self.address, timeout=60.0)

    def __enter__(self) -> Template:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def start(adapter: str = "dspy") -> Client:
    return Client.start(adapter=adapter, timeout=60.0)


def memory(pid: int, *kinds: str) -> float:
    """Return the MiB of memory of a process, of kinds as /proc/PID/smaps_rollup names them."""
    rows = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(rows[kind].split()[0]) for kind in kinds) / 1024


def private(pid: int) -> float:
    return memory(pid, "Private_Clean", "Private_Dirty")


def absolute(contender: str, figure: str) -> Callable[[Round, str], float]:
    return lambda rows, _: rows[contender][figure]


def beside(contender: str, baseline: str, figure: str) -> Callable[[Round, str], float]:
    return lambda rows, _: rows[contender][figure] / rows[baseline][figure]


def connect(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield the time from connecting to the first answer of a program, and the memory of the worker then."""
    template = stack.enter_context(Template("dspy"))

    def first_answer(begin: Callable[[], Client]) -> Figures:
        started = now()
        with begin() as client:
            ready = now()
            prepare(client, OFFLINE)
            client.call("execute_program", EXECUTE)
            answered = now()
            figures = {"private_mib": private(client.pid), "pss_mib": memory(client.pid, "Pss")}
        return {"answer_ms": (answered - started) * 1000, "ready_ms": (ready - started) * 1000} | figures

    contenders = {"connected": partial(first_answer, template.connect), "spawned": partial(first_answer, start)}
    goals = (
        Goal("connect to first answer of a program", absolute("connected", "answer_ms"), 20, "ms"),
        Goal("private memory of a worker after that", absolute("connected", "private_mib"), 8, "MiB"),
    )
    figures = ("answer_ms", "ready_ms", "private_mib", "pss_mib")
    yield Section("connect", "connect to first answer", contenders, figures, 9, "spawned", goals)


def many(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield the time until many workers have answered, and their memory, that of the template included."""
    template = stack.enter_context(Template("dspy"))

    def ready(count: int, begin: Callable[[], Client], pids: tuple[int, ...] = ()) -> Figures:
        with ExitStack() as clients, ThreadPoolExecutor(8) as threads:
            started = now()
            all_of_them = list(threads.map(lambda _: begin(), range(count)))
            took = now() - started
            for client in all_of_them:
                clients.callback(client.kill)
            used = sum(memory(pid, "Pss") for pid in (*pids, *(client.pid for client in all_of_them)))
        return {"ready_s": took, "each_ms": took / count * 1000, "pss_gib": used / 1024, "each_mib": used / count}

    contenders = {
        f"{MANY} connected": partial(ready, MANY, template.connect, (template.pid,)),
        f"{SPAWNED} spawned": partial(ready, SPAWNED, start),
    }
    goals = (
        Goal(f"{MANY} workers ready", absolute(f"{MANY} connected", "ready_s"), 2, "s"),
        Goal(f"memory of {MANY} workers and their template", absolute(f"{MANY} connected", "pss_gib"), 2, "GiB"),
    )
    figures = ("each_ms", "each_mib", "ready_s", "pss_gib")
    yield Section("many", "many workers", contenders, figures, 5, f"{SPAWNED} spawned", goals)


def socket(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield calls of one thread to a worker at the other end of a socket, and to one on pipes."""
    template = stack.enter_context(Template("echo"))
    clients = {"socket": stack.enter_context(template.connect()), "pipes": stack.enter_context(start("echo"))}
    for title, command, args, calls, limit in (
        ("ping", "ping", None, 2000, 1.4),
        ("1 MiB", "echo", {"data": os.urandom(MIB)}, 64, 1.0),
    ):
        contenders = {name: partial(one_caller, client, command, args, calls) for name, client in clients.items()}
        goal = Goal(f"{title}, socket x pipes", beside("socket", "pipes", "p50_us"), limit)
        for awake in (False, True):
            text = f"{title}, cores {'awake' if awake else 'asleep'}"
            goal = goal._replace(title=f"{text}, socket x pipes")
            yield Section("socket", text, contenders, ("p50_us", "host_cpu_us"), 9, "pipes", (goal,), awake)


def cost(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield what a call of a pool costs its host more than a call of a client.

    A pool of four is compared to four clients in random order: calls to several workers meet colder caches than calls
    to one.
    """
    template = stack.enter_context(Template("echo"))
    clients: dict[str, Any] = {
        "client": stack.enter_context(template.connect()),
        "pool of 1": stack.enter_context(Pool(workers=1, adapter="echo")),
        "4 clients": AtRandom([stack.enter_context(template.connect()) for _ in range(4)]),
        "pool of 4": stack.enter_context(Pool(workers=4, adapter="echo")),
    }
    contenders = {name: partial(one_caller, client, "ping", None, 2000) for name, client in clients.items()}
    goals = tuple(
        Goal(f"{name}, CPU time of its host more than of {beside}", more_cpu(name, beside), 2, "us")
        for name, beside in (("pool of 1", "client"), ("pool of 4", "4 clients"))
    )
    yield Section("cost", "ping", contenders, ("host_cpu_us", "p50_us"), 15, "client", goals)


class AtRandom:
    """Several clients, of which each call takes one at random."""

    def __init__(self, clients: list[Client]) -> None:
        self._calls = [client.call for client in clients]

    def call(self, command: str, args: Any) -> Any:
        return choice(self._calls)(command, args)


def more_cpu(name: str, beside: str) -> Callable[[Round, str], float]:
    return lambda rows, _: rows[name]["host_cpu_us"] - rows[beside]["host_cpu_us"]


def one_caller(client: Any, command: str, args: Any, calls: int) -> Figures:
    timed(client.call, command, args, calls // 10)
    cpu = time.process_time()
    times = timed(client.call, command, args, calls)
    cpu = time.process_time() - cpu
    return {"p50_us": statistics.median(times) * 1e6, "host_cpu_us": cpu / calls * 1e6}


def scale(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield calls a second of a handler that keeps a core busy, by the number of workers."""
    env = {"PYTHONPATH": str(HERE)}

    def rate(pool: Pool) -> Figures:
        calls = 192
        took, _ = on_threads(pool.call)("count", {"to": 100_000}, 16, calls)
        return {"per_s": calls / took}

    pools = {
        f"{count} worker{'s' * (count > 1)}": stack.enter_context(
            Pool(workers=count, adapter="pool_load:adapter", env=env)
        )
        for count in (1, 2, 4)
    }
    contenders = {name: partial(rate, pool) for name, pool in pools.items()}
    cores = len(os.sched_getaffinity(0))
    goal = Goal(f"2 workers x 1, of {cores} cores", beside("2 workers", "1 worker", "per_s"), 1.7, least=True)
    yield Section("scale", "a handler that keeps a core busy", contenders, ("per_s",), 7, "1 worker", (goal,))


def neighbours(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield the latency of a worker alone, and while another one of the same template runs programs."""
    template = stack.enter_context(Template("dspy"))
    model = json.dumps(served(stack.enter_context(Peer("serve")).line(), DELAY))
    client = stack.enter_context(template.connect())
    command = [sys.executable, str(HERE / "pool_load.py"), template.address, model]
    load = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    stack.callback(load.communicate)
    assert load.stdin
    assert load.stdout
    load.stdout.readline()

    def pings() -> Figures:
        times = sorted(timed(client.call, "ping", None, 2000))
        return {"p99_us": times[-len(times) // 100] * 1e6, "p50_us": statistics.median(times) * 1e6}

    def beside_programs() -> Figures:
        load.stdin.write("start\n")
        time.sleep(0.3)
        figures = pings()
        load.stdin.write("stop\n")
        load.stdout.readline()
        return figures

    busy = f"{PROGRAMS} programs run"
    contenders = {"alone": pings, busy: beside_programs}
    goal = Goal(f"p99 of ping, {busy} in another worker x alone", beside(busy, "alone", "p99_us"), 2)
    for awake in (False, True):
        title = f"ping, cores {'awake' if awake else 'asleep'}"
        yield Section("neighbours", title, contenders, ("p99_us", "p50_us"), 7, "alone", (goal,), awake)


def restart(_: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield the time from the kill of a pool's only worker to the first answer of the next, beside a start."""
    pool = stack.enter_context(Pool(workers=1, adapter="dspy"))
    prepare(pool, OFFLINE)

    def worker() -> int:
        return next(slot["pid"] for slot in pool.status()["slots"] if slot["state"] == "ready")

    def killed() -> Figures:
        pid = worker()
        started = now()
        os.kill(pid, signal.SIGKILL)
        while True:
            with suppress(errors.WorkerCrashed):
                pool.call("ping", timeout=60.0)
                break
        answered = now()
        pool.call("execute_program", EXECUTE, timeout=60.0)
        assert worker() != pid
        return {"answer_ms": (answered - started) * 1000, "program_ms": (now() - started) * 1000}

    def spawned() -> Figures:
        started = now()
        with start() as client:
            client.call("ping")
            answered = now()
            prepare(client, OFFLINE)
            client.call("execute_program", EXECUTE)
            return {"answer_ms": (answered - started) * 1000, "program_ms": (now() - started) * 1000}

    goal = Goal("kill of a worker to the first answer of the next", absolute("killed", "answer_ms"), 25, "ms")
    contenders = {"killed": killed, "spawned": spawned}
    yield Section("restart", "start of a worker", contenders, ("answer_ms", "program_ms"), 9, "spawned", (goal,))


WHAT: tuple[Make, ...] = (connect, many, socket, restart, cost, scale, neighbours)
MAKERS = {make.__name__: make for make in WHAT}

if __name__ == "__main__":
    main("Measure workers that are forked from a template, and pools of workers.", MAKERS)
