"""The recorder: counts, and percentiles within the width of a bucket."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bridge._histogram import Recorder, now_ns


def recorded(values):
    recorder = Recorder()
    for value in values:
        recorder.record(value, 10, 20, value % 2 == 0)
    return recorder


@given(
    st.lists(st.integers(0, 2**40), min_size=1, max_size=200),
    st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]),
)
def test_percentiles_are_off_by_at_most_one_part_in_32(values, fraction):
    """Against the exact ones; never above the longest."""
    recorder = recorded(values)
    exact = sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]
    found = recorder.percentile(fraction)
    assert exact <= found <= exact + exact / 32
    assert found <= max(values)


def test_counts_and_sums():
    """Calls, errors, bytes; microseconds in the summary."""
    recorder = recorded([1000, 2000, 3001])
    assert recorder.summary() == {
        "calls": 3,
        "errors": 2,
        "bytes_in": 30,
        "bytes_out": 60,
        "latency_us": {
            "p50": recorder.percentile(0.5) / 1000,
            "p90": 3.001,
            "p99": 3.001,
            "max": 3.001,
        },
    }


def test_an_empty_recorder_and_extremes():
    """No calls: zeros. Longer than the last bucket, and a clock that went back: kept in range."""
    recorder = Recorder()
    assert recorder.summary()["latency_us"] == {"p50": 0, "p90": 0, "p99": 0, "max": 0}
    recorder.record(2**62, 0, 0, False)
    assert recorder.summary()["latency_us"]["max"] == 2**62 / 1000
    recorder.record(-5, 0, 0, False)
    assert recorder.percentile(0.5) == 0
    recorder.reset()
    assert recorder.calls == 0


def test_the_clock_is_monotonic():
    """Nanoseconds."""
    first = now_ns()
    assert first <= now_ns() < first + 10**9
