"""What recording one call costs: two looks at the clock, and one entry into counters and histogram.

The compiled path does it in C; from Python the call itself comes on top, so these figures are an
upper bound. Beside them: the same entry into a Python list and into a numpy array.
"""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
from pathlib import Path

import numpy

from bridge._histogram import Recorder, now_ns

CALLS = 200_000
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    recorder, counts, array = Recorder(), [0] * 1152, numpy.zeros(1152, numpy.uint64)

    def nothing(nanoseconds: int, bytes_in: int, bytes_out: int, failed: bool) -> None:
        pass

    def in_list(nanoseconds: int, bytes_in: int, bytes_out: int, failed: bool) -> None:
        shift = max(0, nanoseconds.bit_length() - 6)
        counts[(shift << 5) + (nanoseconds >> shift)] += 1

    def in_array(nanoseconds: int, bytes_in: int, bytes_out: int, failed: bool) -> None:
        shift = max(0, nanoseconds.bit_length() - 6)
        array[(shift << 5) + (nanoseconds >> shift)] += 1

    subjects = {
        "a call that does nothing": lambda: nothing(12345, 100, 200, False),
        "Recorder.record": lambda: recorder.record(12345, 100, 200, False),
        "now_ns": now_ns,
        "histogram in a Python list": lambda: in_list(12345, 100, 200, False),
        "histogram in a numpy array": lambda: in_array(12345, 100, 200, False),
    }
    rounds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, subject in subjects.items():
            rounds[name].append(timeit.timeit(subject, number=CALLS) / CALLS * 1e9)
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    for name, median in medians.items():
        print(f"{name:30}{median:8.0f} ns")
    if options.json:
        Path(options.json).write_text(json.dumps({"ns": medians, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main()
