"""Compare the Python client with its peers, and asyncio with threads, for one build or several.

Each contender is a host process (`client_host.py`) that keeps its worker or peer; `README.md` explains them.

    python benchmarks/client.py [old=/path/to/old/bin/python new=.venv/bin/python] [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

from client_host import SCRIPTED
from comparison import OFFLINE, Builds, Figures, Goal, Make, Round, Section, main
from roundtrip import ENVIRONMENT, HERE

PEERS = {
    "Connection": "connection",
    "Connection, process each": "processes",
    "Connection, thread each": "threads",
}
REQUESTS = {  # (command, bytes): calls from one thread
    "ping": ("ping", 0, 2000),
    "64 KiB": ("echo_decoded", 1 << 16, 512),
    "1 MiB": ("echo_decoded", 1 << 20, 64),
}
THREADS = 16
IN_FLIGHT = 1000
IN_ONE_THREAD = {"submit": "futures", "aio": "asyncio", "uvloop": "asyncio, uvloop"}
FIGURES = ("us", "cpu_us", "host_cpu_us")


class Host:
    """A process that runs `client_host.py`. has: whether its build can be called in this way."""

    def __init__(self, python: str, kind: str, model: dict[str, Any] | None = None) -> None:
        command = [python, "-E", "-s", str(HERE / "client_host.py"), kind, *([json.dumps(model)] if model else [])]
        environment = {name: value for name, value in ENVIRONMENT.items() if name != "PYTHONPATH"} | OFFLINE
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=environment)
        self.has = self._line()["has"]

    def run(self, command: str, size: int = 0, width: int = 1, calls: int = 1) -> Figures:
        assert self._process.stdin
        task = {"command": command, "size": size, "width": width, "calls": calls}
        self._process.stdin.write(json.dumps(task) + "\n")
        return self._line()

    def _line(self) -> Any:
        assert self._process.stdout
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


def client(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield calls of one request at a time from one thread, and from several, with cores asleep and awake."""
    ours = {name: stack.enter_context(Host(python, "bridge")) for name, python in builds.items()}
    pipes = {f"{name}: bare pipe": stack.enter_context(Host(python, "pipe")) for name, python in builds.items()}
    peers = {name: stack.enter_context(Host(sys.executable, kind)) for name, kind in PEERS.items()}
    for awake in (False, True):
        for request, (command, size, calls) in REQUESTS.items():
            for width in (1, THREADS):
                task = {"size": size, "width": width, "calls": calls if width == 1 else calls * 2}
                hosts = {**ours, **pipes, **(peers if width > 1 else {"Connection": peers["Connection"]})}
                contenders = {name: partial(host.run, command, **task) for name, host in hosts.items()}
                if size:
                    undecoded = {f"{name}: undecoded": partial(host.run, "echo", **task) for name, host in ours.items()}
                    contenders |= undecoded
                figure = "p50_us" if width == 1 else "us"
                title = f"{request}, {width} thread{'s' * (width > 1)}, cores {'awake' if awake else 'asleep'}"
                beside = Goal(f"client: {title}, x Connection", partial(beside_best, figure, tuple(PEERS)), 1.0)
                figures = tuple(dict.fromkeys((figure, *FIGURES)))
                yield Section("client", title, contenders, figures, 7, "Connection", (beside,), awake)


def beside_best(figure: str, peers: tuple[str, ...], rows: Round, build: str) -> float:
    """Return the ratio to the fastest of the peers."""
    return rows[build][figure] / min(rows[peer][figure] for peer in peers if peer in rows)


def asyncio(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield 1000 calls in flight from one event loop, beside threads and futures."""
    for command, model, calls in (("ping", None, 10_000), ("execute_program", SCRIPTED, 2000)):
        contenders = {}
        for name, python in builds.items():
            kinds = {kind: stack.enter_context(Host(python, kind, model)) for kind in ("bridge", *IN_ONE_THREAD)}
            for width in (1, 4, 16, 64, IN_FLIGHT):
                contenders[f"{name}: {width} thread{'s' * (width > 1)}"] = partial(
                    kinds["bridge"].run, command, 0, width, calls
                )
            for kind, title in IN_ONE_THREAD.items():
                if kinds[kind].has:
                    contenders[f"{name}: {title}"] = partial(kinds[kind].run, command, 0, IN_FLIGHT, calls)
        goals = (
            Goal(f"asyncio: {command}, throughput x best of threads", throughput_beside_threads, 0.8, least=True),
            Goal(f"asyncio: {command}, threads x {IN_FLIGHT} threads", threads_beside_threads, 0.1),
        )
        title = f"{command}, {IN_FLIGHT} in flight"
        yield Section("asyncio", title, contenders, (*FIGURES, "threads"), 7, goals=goals, has_many=True)


def throughput_beside_threads(rows: Round, build: str) -> float:
    threads = [row["us"] for name, row in rows.items() if name.startswith(f"{build}: ") and "asyncio" not in name]
    return min(threads) / rows[f"{build}: asyncio"]["us"]


def threads_beside_threads(rows: Round, build: str) -> float:
    return rows[f"{build}: asyncio"]["threads"] / rows[f"{build}: {IN_FLIGHT} threads"]["threads"]


MAKERS: dict[str, Make] = {"client": client, "asyncio": asyncio}

if __name__ == "__main__":
    main("Compare the Python client with its peers.", MAKERS)
