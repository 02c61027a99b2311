"""Measure arrays on the wire, from an array in this process to an array in this process, beside C's bandwidth.

Every contender is a process connected by two pipes, which this process uses through the same reader and
writer (`bridge._framing`). They take turns, round by round; a figure is the median of the rounds'
medians. `README.md` explains the sections.

    python benchmarks/tensors.py [--quick] [--json FILE] [--only echo|in|out|forms|memory]
"""

from __future__ import annotations

import argparse
import base64
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
from roundtrip import ENVIRONMENT, HERE, compile_c
from tensor_peers import MAX_FRAME, WAYS

from bridge import Client
from bridge._framing import (
    Outbox,
    Reader,
    Writer,
    buffers_of,
    envelope_of,
    is_multipart,
    set_buffer_size,
)
from bridge.wire import _etf
from bridge.wire.codec import ETF, JSON, MSGPACK, Format
from bridge.wire.tensors import collecting_buffers, substitute

try:
    import pyarrow
except ImportError:
    pyarrow = None

KIB, MIB = 1 << 10, 1 << 20
SIZES = [KIB, 64 * KIB, MIB, 4 * MIB, 16 * MIB, 64 * MIB, 256 * MIB]
OTHER_SIZES = [KIB, 64 * KIB, MIB, 16 * MIB, 64 * MIB]  # of the section forms, where some take seconds
LISTS_UP_TO = MIB
TEXT_UP_TO = 16 * MIB
TARGET = 0.9  # of C's bandwidth, from 1 MiB up
WORKER = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", "tensor_peers:adapter"]
WORKER += ["--max-frame", str(MAX_FRAME)]

Call = Callable[[], Any]


class Peer:
    """A process connected by two pipes, which takes and returns frames."""

    def __init__(self, *command: str) -> None:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(HERE)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for pipe in (self.process.stdin, self.process.stdout):
            set_buffer_size(pipe.fileno())
        self._reader = Reader(self.process.stdout.fileno(), MAX_FRAME)
        self._writer = Writer(self.process.stdin.fileno())

    def ask(self, *parts: Any) -> Any:
        self._writer.send(*parts)
        return self._reader.read()

    def stop(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        self.process.wait(20)
        self.process.stdout.close()  # type: ignore[union-attr]


class Worker(Peer):
    """A worker used without `Client`, which routes replies and keeps deadlines."""

    def __init__(self, format: Format) -> None:
        super().__init__(*WORKER)
        self._format = format
        self.call("hello", {"offers": {"buffers": True}})

    def call(self, command: str, args: dict[str, Any]) -> Any:
        outbox, buffers = Outbox(), []
        request = {"id": 1, "command": command, "args": args}
        outbox.append_multipart(collecting_buffers(self._format.encode_into, buffers), request, buffers)
        self._writer.flush(outbox)
        frame = self._reader.read()
        if not is_multipart(frame):
            return self._format.decode(frame)["result"]
        return substitute(self._format.decode(envelope_of(frame))["result"], buffers_of(frame))


def client(format: str) -> Client:
    os.environ["PYTHONPATH"] = str(HERE)
    return Client.start(adapter="tensor_peers:adapter", format=format, max_frame=MAX_FRAME)


def one_way(echo: str, size: int, only: str) -> dict[str, tuple[Call, Callable[[], None]]]:
    """Return contenders: C, and the bridge in each format. Each is a call, and a function that stops the process."""
    x = numpy.ones(size // 4, "f4")
    arguments = {"echo": [], "in": ["1"], "out": [str(size)]}[only]
    peer = Peer(echo, *arguments)
    parts = [b"x"] if only == "out" else [memoryview(x)]
    calls = {"C echo": (lambda: peer.ask(*parts), peer.stop)}
    command, args = {
        "echo": ("back", {"x": x}),
        "in": ("take", {"x": x}),
        "out": ("give", {"size": size}),
    }[only]
    for name, format in (("JSON", JSON), ("MessagePack", MSGPACK), ("ETF", ETF)):
        worker = Worker(format)
        calls[name] = (lambda w=worker: w.call(command, args), worker.stop)
    ours = client("msgpack")
    calls["with Client"] = (lambda: ours.call(command, args), ours.stop)
    return calls


def forms(echo: str, size: int) -> dict[str, tuple[Call, Callable[[], None]]]:
    """Return contenders that echo one array in several forms."""
    x = numpy.ones(size // 4, "f4")
    ours, c = Worker(MSGPACK), Peer(echo)
    calls: dict[str, tuple[Call, Callable[[], None]]] = {
        "C echo": (lambda: c.ask(memoryview(x)), c.stop),
        "multipart": (lambda: ours.call("back", {"x": x})["x"], ours.stop),
    }

    def plain(name: str, format: Format, command: str, encode: Any, decode: Any) -> None:
        peer = Peer(*WORKER)

        def call() -> Any:
            request = {"id": 1, "command": command, "args": {"x": encode(x)}}
            return decode(format.decode(peer.ask(format.encode(request)))["result"]["x"])

        calls[name] = (call, peer.stop)

    def tensor(data: Any) -> dict[str, Any]:
        return {"$tensor": {"type": "f32", "shape": [size // 4], "data": data}}

    if size <= LISTS_UP_TO:
        plain("JSON list", JSON, "values_back", numpy.ndarray.tolist, lambda v: numpy.array(v, "f4"))
    if size <= TEXT_UP_TO:
        plain(
            "JSON base64",
            JSON,
            "back",
            lambda a: tensor(memoryview(a)),
            lambda v: numpy.frombuffer(base64.b64decode(v["$tensor"]["data"]), "f4"),
        )
    plain(
        "MessagePack bin",
        MSGPACK,
        "back",
        lambda a: tensor(memoryview(a)),
        lambda v: numpy.frombuffer(v["$tensor"]["data"], "f4"),
    )
    plain(
        "ETF binary",
        ETF,
        "back",
        lambda a: (_etf.Atom("tensor"), (_etf.Atom("f"), 32), (size // 4,), memoryview(a)),
        lambda v: numpy.frombuffer(v[3], "f4"),
    )
    for way, (encode, decode) in WAYS.items():
        if way == "pyarrow" and pyarrow is None:
            continue
        peer = Peer(sys.executable, str(HERE / "tensor_peers.py"), way)
        name = {"pickle": "pickle 5, out of band", "pyarrow": "pyarrow IPC"}[way]
        calls[name] = (lambda p=peer, e=encode, d=decode: d(p.ask(*e(x))), peer.stop)
    return calls


def measure(calls: dict[str, tuple[Call, Callable[[], None]]], size: int, rounds: int) -> dict[str, list[float]]:
    """Return the median seconds of a call in each round, by contender, without the first calls."""
    count = max(4, min(200, 128 * MIB // size)) // (1 if rounds > 3 else 2)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, (call, _) in calls.items():
            samples[name].append(statistics.median(timed(call, count)))
    for _, stop in calls.values():
        stop()
    return samples


def timed(call: Call, count: int) -> list[float]:
    warm_up, took = max(1, count // 4), []
    for _ in range(warm_up + count):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return took[warm_up:]


def memory(size: int) -> dict[str, dict[str, float]]:
    """Return the MiB by which one call raises the peak of resident memory, minus the payload.

    The host receives an array there, the worker another one.
    """
    figures = {}
    for format in ("json", "msgpack", "etf"):
        ours = client(format)
        x = numpy.ones(size // 4, "f4")
        ours.call("take", {"x": x[:1]})
        ours.call("give", {"size": size})  # makes the array
        taking = peak(ours.pid, lambda c=ours, a=x: c.call("take", {"x": a}))
        giving = peak(os.getpid(), lambda c=ours: c.call("give", {"size": size}))
        figures[format] = {"worker": taking - size / MIB, "host": giving - size / MIB}
        ours.stop()
    return figures


def peak(pid: int, call: Call) -> float:
    """Return the MiB by which the resident memory of a process rises during a call."""
    gc.collect()
    time.sleep(1.5)  # until the reusable slab of the last large frame is released
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    before = resident(pid, "VmRSS")
    call()
    return (resident(pid, "VmHWM") - before) / 1024


def resident(pid: int, line: str) -> int:
    """Return a value of /proc/PID/status in KiB."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(entry.split()[1]) for entry in status if entry.startswith(line))


def sized(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def table(title: str, medians: dict[int, dict[str, float]]) -> str:
    """Return MB/s of payload, and the ratio to C."""
    names = list(dict.fromkeys(name for row in medians.values() for name in row))
    lines = [f"\n{title}", " " * 10 + "".join(f"{name:>24}" for name in names)]
    for size, row in medians.items():
        cells = (
            f"{size / row[name] / 1e6:12,.0f} MB/s {row['C echo'] / row[name]:6.3f}" if name in row else ""
            for name in names
        )
        lines.append(f"{sized(size):10}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


TITLES = {
    "echo": "both ways (payload counted once, and ratio to C)",
    "in": "to the worker",
    "out": "from the worker",
    "forms": "both ways, in other forms",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure arrays on the wire.")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--quick", action="store_true", help="up to 16 MiB, half the rounds")
    parser.add_argument("--only", choices=[*TITLES, "memory"])
    options = parser.parse_args()
    sizes = [size for size in SIZES if not options.quick or size <= 16 * MIB]
    report: dict[str, Any] = {"cores": os.cpu_count(), "seconds": {}, "targets": []}
    if pyarrow is None:
        print("pyarrow is not installed, so it is not measured")
    with tempfile.TemporaryDirectory() as directory:
        echo = compile_c("echo", directory)
        for section, title in TITLES.items():
            if options.only not in (None, section):
                continue
            medians: dict[int, dict[str, float]] = {}
            of_forms = section == "forms"
            for size in sizes:
                if of_forms and size not in OTHER_SIZES:
                    continue
                calls = forms(echo, size) if of_forms else one_way(echo, size, section)
                samples = measure(calls, size, 3 if options.quick or of_forms else 7)
                medians[size] = {name: statistics.median(each) for name, each in samples.items()}
                report["seconds"].setdefault(section, {})[sized(size)] = samples
                if section != "forms" and size >= MIB:
                    report["targets"] += [
                        {
                            "section": section,
                            "size": sized(size),
                            "contender": name,
                            "value": round(medians[size]["C echo"] / value, 3),
                        }
                        for name, value in medians[size].items()
                        if name not in ("C echo", "with Client")
                    ]
            print(table(title, medians), flush=True)
    if options.only in (None, "memory"):
        report["memory"] = memory(64 * MIB)
        print("\npeak of resident memory beside the payload of 64 MiB, MiB")
        for format, figures in report["memory"].items():
            print(f"{format:10} worker {figures['worker']:6.2f}   host {figures['host']:6.2f}")
    print("\nTargets: of C's bandwidth from 1 MiB up")
    for target in report["targets"]:
        word = "reached" if target["value"] >= TARGET else "missed"
        print(f"{word:8} {target['section']:5} {target['size']:8} {target['contender']:18}", end="")
        print(f" {target['value']:.3f}, target {TARGET}")
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
