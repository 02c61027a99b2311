"""Compare installed builds of the bridge: is one slower than another, and does each reach its targets?

Each build is the Python interpreter of an environment that bridge is installed in. The sections of this file drive
workers with `c/host.c` through the wire alone, so builds with different internals can be compared; `client.py` and
`programs.py` have the others.

    python benchmarks/builds.py old=/path/to/old/bin/python new=.venv/bin/python [--quick] [--json FILE]
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import client
import programs
from comparison import Builds, Figures, Goal, Make, Section, difference, main
from roundtrip import HERE, IN_FLIGHT, PASS, PING, WINDOW, Contender, compile_c, measure_elixir, run
from roundtrip import Section as ElixirSection

TENSOR_BYTES = 1 << 20
ALIGNMENT = 64  # bytes, of a buffer in a multipart frame
SUCCESS = b'"success":true'

Contenders = dict[str, Callable[[], Figures]]


def wire(
    builds: Builds,
    stack: ExitStack,
    kind: str,
    calls: int,
    options: list[str],
    request: bytes,
    baseline: Contender | None = None,
) -> Contenders:
    """Return a contender for each build, after the baseline, which is the C echo by default."""
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    host, echo = (compile_c(name, directory) for name in ("host", "echo"))
    contenders = [
        baseline or Contender("C echo", [echo], request, b'"command"'),
        *(Contender(name, worker_of(python), request, SUCCESS) for name, python in builds.items()),
    ]
    return {contender.name: over_wire(host, kind, calls, options, contender) for contender in contenders}


def over_wire(host: str, kind: str, calls: int, options: list[str], contender: Contender) -> Callable[[], Figures]:
    """Return a round of `c/host.c`, which starts the contender's command, calls it and ends it."""
    kind = kind if contender.request else "exit"  # a command that does not reply
    command = [host, kind, f"-n{calls}", *options, "-e", os.fsdecode(contender.expect), *contender.command]
    return lambda: json.loads(run(*command, stdin=contender.request))


def worker_of(python: str) -> list[str]:
    return [python, "-I", "-m", "bridge", "worker", "--adapter", "echo"]


def ping(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    core = min(os.sched_getaffinity(0))
    contenders = wire(builds, stack, "calls", 5000, [f"-p{core},{core}"], encoded(PING))
    goal = Goal("ping on one core above the C echo", difference("C echo", "p50_us"), 1.2, "µs")
    yield Section("wire", "ping, on one core with the host", contenders, ("p50_us", "cpu_us"), 21, "C echo", (goal,))


def pipelined(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    cores = sorted(os.sched_getaffinity(0))
    options = [f"-w{WINDOW}", f"-p{cores[0]},{cores[-1]}"]
    contenders = wire(builds, stack, "pipelined", 50_000, options, encoded(PING))
    goal = Goal("CPU of a pipelined request", lambda rows, build: rows[build]["cpu_us"], 0.9, "µs")
    yield Section("wire", IN_FLIGHT, contenders, ("cpu_us",), 21, "C echo", (goal,))


def start(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    nothing = Contender("python -c pass", PASS)
    contenders = wire(builds, stack, "start", 1, [], encoded(PING), nothing)
    yield Section("wire", "start to first ping", contenders, ("ms",), 30, nothing.name)


def tensors(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    contenders = wire(builds, stack, "calls", 300, [], tensor_request())
    yield Section("wire", "tensor of 1 MiB, both ways", contenders, ("p50_us", "cpu_us"), 15, "C echo")


def beam(builds: Builds, stack: ExitStack) -> Iterator[Section]:
    """Yield calls from a BEAM port. One BEAM runs one round of all contenders."""
    if not shutil.which("elixir"):
        print("\nelixir is not on PATH, so its section is not measured")
        return
    echo = compile_c("echo", stack.enter_context(tempfile.TemporaryDirectory()))
    request = encoded(PING)
    contenders = [
        Contender("C echo", [echo], request),
        *(Contender(name, worker_of(python), request) for name, python in builds.items()),
    ]
    latest: dict[str, Any] = {}

    def figures(name: str) -> Figures:
        if name == contenders[0].name:
            latest.update(measure_elixir(ElixirSection("", "", "elixir", 5000, [], contenders, rounds=1)))
        row: Figures = latest[name][0]
        return row

    goal = Goal("from the BEAM above the C echo on a port", difference("C echo", "p50_us"), 1.6, "µs")
    named = {contender.name: partial(figures, contender.name) for contender in contenders}
    title = "ping from a BEAM port, cores awake"
    yield Section("wire", title, named, ("p50_us",), 15, "C echo", (goal,), awake=True)


def encoded(request: dict[str, Any]) -> bytes:
    return json.dumps(request, separators=(",", ":")).encode()


def tensor_request() -> bytes:
    """Return a multipart payload whose only buffer is a tensor (docs/protocol.md describes the layout)."""
    tensor = {"type": "f32", "shape": [TENSOR_BYTES // 4], "data": {"$buffer": 0}}
    envelope = encoded({"id": 1, "command": "echo_decoded", "args": {"x": {"$tensor": tensor}}})
    head = struct.pack(">4I", 0xC1010000, 1, len(envelope), TENSOR_BYTES) + envelope
    padding = bytes(-len(head) % ALIGNMENT)
    return head + padding + struct.pack("f", 1.0) * (TENSOR_BYTES // 4)


WIRE: tuple[Make, ...] = (ping, pipelined, start, tensors, beam)
MAKERS = {make.__name__: make for make in WIRE} | client.MAKERS | programs.MAKERS

if __name__ == "__main__":
    main("Compare installed builds with each other.", MAKERS, HERE.parent / "docs" / "performance.md")
