"""Compare installed builds of the bridge with each other: is one slower than another?

Each build is the Python interpreter of an environment that bridge is installed in. Workers are
driven by `c/host.c` through the wire alone, so builds with different internals can be compared.
Builds take turns, round by round, and every ratio is between figures of the same round.

    python benchmarks/builds.py old=/path/to/old/bin/python new=.venv/bin/python [--quick] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from roundtrip import IN_FLIGHT, PASS, PING, WINDOW, Contender, Samples, Section, compile_c, measure, medians

FIELDS = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
INPUTS = {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}
SETUP: list[tuple[str, Any]] = [
    ("configure_lm", {"provider": "scripted", "answers": {"": {"answer": "Paris"}}}),
    ("create_program", {"id": "qa", "signature": FIELDS}),
]
EXECUTE = {"id": 1, "command": "execute_program", "args": {"program_id": "qa", "inputs": INPUTS}}
TENSOR_BYTES = 1 << 20
ALIGNMENT = 64  # bytes, of a buffer in a multipart frame

Quartiles = tuple[float, float, float]


def sections(builds: dict[str, str], echo: str, setup: str, quick: bool) -> list[Section]:
    """Return what is measured, with a contender for each build."""
    cores = sorted(os.sched_getaffinity(0))
    one, two = f"-p{cores[0]},{cores[0]}", f"-p{cores[0]},{cores[-1]}"
    ping, execute, tensor = encoded(PING), encoded(EXECUTE), tensor_request()

    def contenders(request: bytes, expect: bytes = b'"success":true', adapter: str = "echo") -> list[Contender]:
        worker = ["-I", "-m", "bridge", "worker", "--adapter", adapter]
        return [Contender(name, [python, *worker], request, expect) for name, python in builds.items()]

    def beside_echo(request: bytes) -> list[Contender]:
        return [Contender("C echo", [echo], request, b'"command"'), *contenders(request)]

    starts = [Contender("python -c pass", PASS), *contenders(ping)]
    executes = contenders(execute, b'"Paris"', "dspy")
    figures = ("p50_us", "cpu_us")
    every = [
        Section("ping", "ping, on one core with the host", "calls", 5000, [one], beside_echo(ping), figures, 21),
        Section("pipelined", IN_FLIGHT, "pipelined", 50_000, [f"-w{WINDOW}", two], beside_echo(ping), ("cpu_us",), 21),
        Section("start", "start to first ping", "start", 1, [], starts, ("ms",), 30),
        Section("execute", "execute_program, instant model", "calls", 500, ["-s", setup], executes, figures, 12),
        Section("tensors", "tensor of 1 MiB, both ways", "calls", 300, [], beside_echo(tensor), figures, 15),
    ]
    return [s._replace(rounds=s.rounds // 3) if quick else s for s in every]


def encoded(request: dict[str, Any]) -> bytes:
    return json.dumps(request, separators=(",", ":")).encode()


def setup_frames() -> bytes:
    """Return the frames that prepare a worker for `execute_program`."""
    requests = [encoded({"id": 1, "command": command, "args": args}) for command, args in SETUP]
    return b"".join(struct.pack(">I", len(request)) + request for request in requests)


def tensor_request() -> bytes:
    """Return a multipart payload whose only buffer is a tensor (docs/protocol.md describes the layout)."""
    tensor = {"type": "f32", "shape": [TENSOR_BYTES // 4], "data": {"$buffer": 0}}
    envelope = encoded({"id": 1, "command": "echo_decoded", "args": {"x": {"$tensor": tensor}}})
    head = struct.pack(">4I", 0xC1010000, 1, len(envelope), TENSOR_BYTES) + envelope
    padding = bytes(-len(head) % ALIGNMENT)
    return head + padding + struct.pack("f", 1.0) * (TENSOR_BYTES // 4)


def quartiles(values: list[float]) -> Quartiles:
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(samples: Samples, name: str, baseline: str, figure: str) -> Quartiles:
    """Return the quartiles of the rounds' ratios: `name` in units of `baseline`."""
    pairs = zip(samples[name], samples[baseline], strict=True)
    return quartiles([one[figure] / other[figure] for one, other in pairs])


def table(section: Section, samples: Samples, builds: list[str]) -> str:
    """Return a line for each contender and figure: best, median and middle half of the rounds, ratios."""
    lines = [f"\n{section.title} ({section.rounds} rounds)"]
    lines.append(f"{'':26}{'best':>9}{'median':>10}{'middle half':>22}   median of the rounds' ratios [middle half]")
    for figure in section.figures:
        for name, rounds in samples.items():
            values = [r[figure] for r in rounds]
            low, middle, high = quartiles(values)
            line = f"{figure:8}{name:18}{min(values):9.3f}{middle:10.3f}{f'{low:.3f} - {high:.3f}':>22}"
            for baseline in ("C echo", builds[0]):
                if baseline in samples and name in builds and name != baseline:
                    low, middle, high = ratios(samples, name, baseline, figure)
                    line += f"   {middle:.3f} x {baseline} [{low:.3f} - {high:.3f}]"
            lines.append(line)
    return "\n".join(lines)


def build_of(text: str) -> tuple[str, str]:
    """Return name and interpreter of `NAME=PYTHON`, or of a bare `PYTHON`."""
    name, _, python = text.rpartition("=")
    return name or python, python


def package_of(python: str) -> str:
    """Return the folder of the bridge package that an interpreter imports. Raises CalledProcessError."""
    code = "import bridge, os; print(os.path.dirname(bridge.__file__))"
    return subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare installed builds with each other.")
    parser.add_argument("builds", nargs="+", metavar="NAME=PYTHON", help="the first one is what others are compared to")
    parser.add_argument("--json", metavar="FILE", help="write the figures of all rounds there")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds")
    parser.add_argument("--only", metavar="SECTION", help="ping, pipelined, start, execute or tensors")
    options = parser.parse_args()
    builds = dict(map(build_of, options.builds))
    packages = {name: package_of(python) for name, python in builds.items()}
    if len(set(packages.values())) < len(options.builds):
        sys.exit(f"two builds have the same package or name: {packages}")
    report: dict[str, Any] = {"system": platform.platform(), "cores": os.cpu_count(), "builds": packages}
    report["sections"] = []
    with tempfile.TemporaryDirectory() as directory:
        host, echo = (compile_c(name, directory) for name in ("host", "echo"))
        setup = Path(directory, "setup")
        setup.write_bytes(setup_frames())
        for section in sections(builds, echo, str(setup), options.quick):
            if options.only not in (None, section.name):
                continue
            samples = measure(host, section)
            print(table(section, samples, list(builds)), flush=True)
            compared = {
                name: {figure: ratios(samples, name, next(iter(builds)), figure) for figure in section.figures}
                for name in builds
            }
            entry = {"name": section.name, "title": section.title, "medians": medians(samples)}
            report["sections"].append({**entry, "ratios": compared, "rounds": samples})
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
