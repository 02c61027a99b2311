"""Measure calls over the pipe, beside baselines of the same run. `README.md` explains the sections.

A section is one kind of traffic. Its contenders take turns, round by round, so that a busy moment of
the machine affects all of them; a figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from bridge.version import __version__
from bridge.wire.codec import JSON, MSGPACK, Format

HERE = Path(__file__).parent
BRIDGE = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", "echo"]
PLAIN = [sys.executable, str(HERE / "plain_worker.py")]
TWIN = [sys.executable, str(HERE / "twin_worker.py")]
PASS = [sys.executable, "-c", "pass"]
PING = {"id": 1, "command": "ping", "args": {}}
SIZES = {"1 KiB": (1 << 10, 5000), "64 KiB": (1 << 16, 1000), "1 MiB": (1 << 20, 100)}
WINDOW = 128  # requests in flight
IN_FLIGHT = f"ping, {WINDOW} in flight, host and worker on a core each"
LATENCIES = ("p50_us", "p90_us", "p99_us")
HEAVY = {"dspy", "litellm", "numpy", "openai", "pandas", "pydantic"}
BASELINES = ("C echo", "plain worker", "python -c pass")
# Environment variables must not slow down some contenders only: PYTHONUNBUFFERED doubles the writes of
# the plain worker, PYTHONDONTWRITEBYTECODE makes each start of bridge compile its modules.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("PYTHON") or name in ("PYTHONPATH", "PYTHONHOME")
}

Figures = dict[str, float]
Samples = dict[str, list[Figures]]  # the figures of each round, by contender


class Contender(NamedTuple):
    """A process to measure. expect: bytes that each reply contains exactly once."""

    name: str
    command: list[str]
    request: bytes = b""
    expect: bytes = b""


class Section(NamedTuple):
    """One kind of traffic, and its contenders.

    kind, calls, options: arguments of `c/host.c` for a round; the kind `elixir` runs `port.exs`.
    figures: the columns of the table; its ratios compare the first.
    """

    name: str
    title: str
    kind: str
    calls: int
    options: list[str]
    contenders: list[Contender]
    figures: tuple[str, ...] = (*LATENCIES, "cpu_us")
    rounds: int = 7


class Target(NamedTuple):
    """A limit for a contender's figure, as a multiple of the baseline's, or absolute if there is no baseline."""

    section: str
    contender: str
    figure: str
    limit: float
    baseline: str = ""


TARGETS = [
    *(
        Target(section, contender, figure, limit, baseline)
        for section, figure, limit, baseline in (
            ("pinned", "p50_us", 1.4, "C echo"),
            ("pinned", "p50_us", 0.45, "plain worker"),
            ("pipelined", "cpu_us", 1 / 7, "plain worker"),
            ("pipelined", "cpu_us", 1 / 10, "plain worker"),
            ("pipelined", "cpu_us", 1.0, ""),
        )
        for contender in ("bridge JSON", "bridge MessagePack")
    ),
    Target("start", "bridge JSON", "ms", 4.0, "python -c pass"),
    Target("elixir", "bridge JSON", "p50_us", 1.2, "C echo"),
]


def sections(echo: str, quick: bool) -> list[Section]:
    pings, cores = contenders(echo, PING), sorted(os.sched_getaffinity(0))
    twin = Contender("bridge, plain framing", TWIN, JSON.encode(PING), b'"success":true')
    thread = bridge("bridge JSON, on a thread", JSON, {**PING, "command": "sleep"})
    one, two = f"-p{cores[0]},{cores[0]}", f"-p{cores[0]},{cores[-1]}"
    starts = [*pings[:3], Contender("python -c pass", PASS)]
    cpu, sizes = ("cpu_us", "per_s"), ("p50_us", "p99_us", "mb_per_s", "cpu_us")
    every = [
        Section("pinned", "ping, on one core with the host", "calls", 10000, [one], [*pings, twin]),
        Section("unpinned", "ping, unpinned", "calls", 5000, [], [*pings, thread]),
        Section("pipelined", IN_FLIGHT, "pipelined", 100_000, [f"-w{WINDOW}", two], [*pings, twin], cpu),
        Section("sparse", "ping, one every 1 ms", "calls", 500, ["-g1000"], pings),
        Section("sparse", "ping, one every 5 ms", "calls", 150, ["-g5000"], pings),
        *(
            Section("payload", f"echo of {size}", "calls", calls, [], echoes(echo, length), sizes)
            for size, (length, calls) in SIZES.items()
        ),
        Section("start", "start to first ping", "start", 1, [], starts, ("ms",), rounds=15),
        Section("elixir", "ping from a BEAM port", "elixir", 5000, [], pings[:3], LATENCIES),
    ]
    return [s._replace(calls=s.calls // 5 or 1, rounds=3) if quick else s for s in every]


def contenders(echo: str, request: dict[str, Any]) -> list[Contender]:
    plain = json.dumps(request).encode()
    return [
        Contender("C echo", [echo], JSON.encode(request), b'"command"'),
        Contender("plain worker", PLAIN, plain, b'"success": true'),
        bridge("bridge JSON", JSON, request),
        bridge("bridge MessagePack", MSGPACK, request),
    ]


def echoes(echo: str, size: int) -> list[Contender]:
    """Return contenders for an `echo` of about `size` bytes of chat history, which bridge does not decode."""
    message = {"role": "user", "content": 'What is "a pipe"?\nA way between two programs. ' * 4}
    args = {"messages": [message] * (size // len(JSON.encode(message)))}
    decoded = {"id": 1, "command": "echo_decoded", "args": args}
    return [
        *contenders(echo, {"id": 1, "command": "echo", "args": args}),
        bridge("bridge JSON, decoded", JSON, decoded),
        bridge("bridge MessagePack, decoded", MSGPACK, decoded),
    ]


def bridge(name: str, format: Format, request: dict[str, Any]) -> Contender:
    success = b'"success":true' if format is JSON else b"\xa7success\xc3"
    return Contender(name, BRIDGE, format.encode(request), success)


def measure(host: str, section: Section) -> Samples:
    if section.kind == "elixir":
        return measure_elixir(section)
    samples: Samples = {contender.name: [] for contender in section.contenders}
    for _ in range(section.rounds):
        for name, command, request, expect in section.contenders:
            kind = section.kind if request else "exit"  # a command that does not reply
            options = [kind, f"-n{section.calls}", *section.options, "-e", os.fsdecode(expect)]
            samples[name].append(json.loads(run(host, *options, *command, stdin=request)))
    return samples


def measure_elixir(section: Section) -> Samples:
    """Measure all rounds in one BEAM. A contender is one argument with a line for each field."""
    fields = [(c.name, base64.b64encode(c.request).decode(), *c.command) for c in section.contenders]
    arguments = [str(section.rounds), str(section.calls), *map("\n".join, fields)]
    samples: Samples = json.loads(run("elixir", str(HERE / "port.exs"), *arguments))
    return samples


def heavy_imports() -> list[str]:
    """Return the heavy packages that a worker has imported by its first reply."""
    ping = JSON.encode(PING)
    frame = len(ping).to_bytes(4, "big") + ping
    log = run(BRIDGE[0], "-X", "importtime", *BRIDGE[1:], stdin=frame, stderr=subprocess.STDOUT)
    lines = log.decode(errors="replace").splitlines()
    return sorted(HEAVY & {line.rpartition("|")[2].strip() for line in lines})


def run(*command: str, stdin: bytes = b"", stderr: int | None = None) -> bytes:
    """Run a command, and return its standard output. Raises CalledProcessError."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=stderr, check=True, env=ENVIRONMENT)
    return done.stdout


def medians(samples: Samples) -> dict[str, Figures]:
    return {
        name: {figure: statistics.median(r[figure] for r in rounds) for figure in rounds[0]}
        for name, rounds in samples.items()
    }


def judge(target: Target, rows: dict[str, Figures]) -> dict[str, Any]:
    unit = rows[target.baseline][target.figure] if target.baseline else 1.0
    value = rows[target.contender][target.figure] / unit
    return {**target._asdict(), "value": round(value, 3), "reached": value <= target.limit}


def table(section: Section, rows: dict[str, Figures]) -> str:
    key, baselines = section.figures[0], [name for name in BASELINES if name in rows]
    titles = [*section.figures, *(f"x {name}" for name in baselines)]
    lines = [f"\n{section.title} (median of {section.rounds} rounds)"]
    lines.append(" " * 28 + "".join(f"{title:>17}" for title in titles))
    for name, row in rows.items():
        values = [row[figure] for figure in section.figures]
        values += [row[key] / rows[baseline][key] for baseline in baselines]
        cells = (f"{value:17,.0f}" if value >= 1000 else f"{value:17.3f}" for value in values)
        lines.append(f"{name:28}" + "".join(cells))
    return "\n".join(lines)


def verdict(target: dict[str, Any]) -> str:
    word = "reached" if target["reached"] else "missed"
    figure = f"{target['section']}: {target['contender']} {target['figure']}"
    unit = f" x {target['baseline']}" if target["baseline"] else ""
    return f"{word:8} {figure:44} {target['value']:.3f}{unit}, target {target['limit']:.3f}"


def compile_c(name: str, directory: str) -> str:
    program = str(Path(directory, name))
    run(os.environ.get("CC", "cc"), "-O2", "-o", program, str(HERE / "c" / f"{name}.c"))
    return program


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure calls over the pipe.")
    parser.add_argument("--json", metavar="FILE", help="write the figures of all rounds there")
    parser.add_argument("--quick", action="store_true", help="a fifth of the calls, three rounds")
    parser.add_argument("--only", metavar="SECTION", help="see benchmarks/README.md")
    options = parser.parse_args()
    machine = {"python": platform.python_version(), "system": platform.platform()}
    report: dict[str, Any] = {"bridge": __version__, **machine, "cores": os.cpu_count()}
    report |= {"sections": [], "targets": []}
    with tempfile.TemporaryDirectory() as directory:
        host, echo = (compile_c(name, directory) for name in ("host", "echo"))
        for section in sections(echo, options.quick):
            if options.only not in (None, section.name):
                continue
            if section.kind == "elixir" and not shutil.which("elixir"):
                print("\nelixir is not on PATH, so its section is not measured")
                continue
            samples = measure(host, section)
            rows = medians(samples)
            print(table(section, rows), flush=True)
            entry = {"name": section.name, "title": section.title, "medians": rows}
            report["sections"].append({**entry, "rounds": samples})
            report["targets"] += [judge(t, rows) for t in TARGETS if t.section == section.name]
            if section.name == "start":
                report["heavy_imports"] = heavy_imports()
                print("heavy packages imported by then:", report["heavy_imports"] or "none")
    print("\nTargets", *map(verdict, report["targets"]), sep="\n")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
