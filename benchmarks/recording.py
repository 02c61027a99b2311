"""Measure the cost of recording one call: reading the clock twice, and updating figures of command and session.

The figures are counters, a histogram and a window. The compiled path updates them in C, so C code measures
it (`recording_loops.pyx`), minus the loop itself. Latencies are log-normal around 20 ms. Baselines:
the histogram alone, in a Python list and in a numpy array, minus a call that does nothing. Also
measured: the time that `get_stats` takes on the reader thread with 10 000 sessions, beside `ping`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import timeit
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy

from bridge import Dispatcher, Options, Quota, errors
from bridge._dispatch import timestamp
from bridge._histogram import Recorder
from bridge.adapters.echo import adapter as echo
from bridge.wire.messages import Reply, failure
from bridge.worker import exporters
from bridge.worker.session import Session

CALLS = 100_000
ROUNDS = 15
ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        loops = built(Path(folder))
    times = numpy.random.default_rng(1).lognormal(16.8, 1.0, CALLS).astype(numpy.int64)
    contenders = {**in_c(loops, times), **in_python(times.tolist())}
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, call in contenders.items():
            rounds[name].append(timeit.timeit(call, number=1) / CALLS * 1e9)
    medians = {name: statistics.median(each) for name, each in rounds.items()}
    net = {name: median - medians[baseline(name)] for name, median in medians.items() if baseline(name) != name}
    print(f"{'ns a call, minus the loop':52}")
    for name, figure in net.items():
        print(f"{name:52}{figure:8.1f}")
    statistics_ms = time_statistics()
    print(f"\n{'ms a request, with 10 000 sessions':52}")
    for name, figure in statistics_ms.items():
        print(f"{name:52}{figure:8.3f}")
    if options.json:
        figures = {"ns": net, "with_loop_ns": medians, "rounds_ns": rounds, "asking_ms": statistics_ms}
        Path(options.json).write_text(json.dumps(figures, indent=1))


def in_c(loops: Any, times: Any) -> dict[str, Callable[[], Any]]:
    """Return the contenders in C."""
    reply = Reply(1, True, {}, timestamp())
    failed = failure(1, errors.InvalidArgs("x"), timestamp())
    one, many = sessions(1), sessions(10_000)
    good, half = [reply, reply], [reply, failed]
    return {
        "loop: C": lambda: loops.nothing(times, good, one, Recorder()),
        "C: reading the clock twice": lambda: loops.clocks(times, good, one, Recorder()),
        "C: everything": lambda: loops.everything(times, good, one, Recorder()),
        "C: everything, 10 000 sessions in turns": lambda: loops.everything(times, good, many, Recorder()),
        "C: everything, every second call fails": lambda: loops.everything(times, half, one, Recorder()),
    }


def in_python(times: list[int]) -> dict[str, Callable[[], Any]]:
    """Return the contenders in Python."""
    counts, array = [0] * 1152, numpy.zeros(1152, numpy.uint64)

    def nothing(nanoseconds: int) -> None:
        pass

    def in_list(nanoseconds: int) -> None:
        shift = max(0, nanoseconds.bit_length() - 6)
        counts[(shift << 5) + (nanoseconds >> shift)] += 1

    def in_array(nanoseconds: int) -> None:
        shift = max(0, nanoseconds.bit_length() - 6)
        array[(shift << 5) + (nanoseconds >> shift)] += 1

    def each(function: Callable[[int], None]) -> Callable[[], None]:
        def run() -> None:
            for nanoseconds in times:
                function(nanoseconds)

        return run

    return {
        "loop: Python": each(nothing),
        "Python: the histogram alone, in a list": each(in_list),
        "Python: the histogram alone, in a numpy array": each(in_array),
    }


def time_statistics() -> dict[str, float]:
    """Return the ms that requests for statistics take, with 10 000 sessions."""
    dispatcher = Dispatcher(echo, Options(max_sessions=20_000))
    exporters.load(dispatcher.worker)
    for number in range(10_000):
        session = dispatcher.sessions.open(f"s{number * 7919 % 10_000}")
        session.recorder.record(number * 1000, 100, 200)
    for command in dispatcher.commands.values():
        for number in range(1000):
            command.recorder.record(number * 1000, 100, 200)
    requests: dict[str, tuple[str, dict[str, Any]]] = {
        "ping": ("ping", {}),
        "get_stats": ("get_stats", {}),
        "commands": ("get_stats", {"include": ["commands"]}),
        "commands, histograms": ("get_stats", {"include": ["commands", "histograms"]}),
        "process": ("get_stats", {"include": ["process"]}),
        "100 sessions": ("get_stats", {"include": ["sessions"]}),
        "1000 sessions": ("get_stats", {"include": ["sessions"], "limit": 1000}),
        "prometheus": ("get_stats", {"format": "prometheus"}),
        "prometheus, 100 sessions": (*("get_stats", {"format": "prometheus", "include": ["sessions"]}),),
    }
    print(f"\n({len(dispatcher.commands)} commands, all with recorded calls)")
    figures = {}
    for name, (command, args) in requests.items():
        request = json.dumps({"id": 1, "command": command, "args": args}).encode()
        assert b'"success":true' in dispatcher.call(request)[:40]
        times = timeit.repeat(lambda: dispatcher.call(request), number=1, repeat=50)  # noqa: B023  # called within this iteration
        figures[name] = statistics.median(times) * 1000
    return figures


def baseline(name: str) -> str:
    return name if name.startswith("loop") else f"loop: {name.partition(':')[0]}"


def sessions(count: int) -> list[Session]:
    return [Session(f"s{number}", lambda records: {}, {}, 3600.0, Quota(), None) for number in range(count)]


def built(folder: Path) -> Any:
    """Compile `recording_loops.pyx` with the flags of setup.py, and import it."""
    from Cython.Build import cythonize
    from setuptools import Distribution, Extension

    source = Path(__file__).with_name("recording_loops.pyx")
    extension = Extension("recording_loops", [str(source)], extra_compile_args=["-O3", "-g0"])
    modules = cythonize([extension], include_path=[str(ROOT / "src")], build_dir=str(folder), quiet=True)
    command = Distribution({"ext_modules": modules}).get_command_obj("build_ext")
    command.build_lib = command.build_temp = str(folder)
    command.ensure_finalized()
    command.run()
    (library,) = folder.glob("recording_loops.*.so")
    spec = spec_from_file_location("recording_loops", library)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
