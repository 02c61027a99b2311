"""Recorders and histograms: counts, percentiles within the width of a bucket, merging, windows."""

from __future__ import annotations

import math
import sys

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import Histogram
from bridge._histogram import SLOT_NS, Recorder, now_ns

SECOND = 10**9
nanoseconds = st.integers(0, 2**40 - 1)  # longer ones share the last bucket
# Around where the list of the first calls ends, and past it.
many = st.lists(nanoseconds, min_size=1, max_size=200) | st.lists(st.integers(0, 2**30), min_size=250, max_size=600)


def recorded(values):
    recorder = Recorder()
    for value in values:
        recorder.record(value, 10, 20, "request" if value % 2 == 0 else None)
    return recorder


@given(many, st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999, 1.0]))
def test_percentiles_are_off_by_at_most_one_part_in_32(values, fraction):
    """They are compared with exact ones, and never exceed the longest call."""
    exact = sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]
    found = recorded(values).total().percentile(fraction)
    assert exact <= found <= exact + exact / 32
    assert found <= max(values)


@given(many, many)
def test_merging_is_recording_into_one(some, others):
    """It does not depend on the form in which the two hold their calls."""
    merged, both = recorded(some).total(), recorded([*some, *others]).total()
    merged.merge(recorded(others).total())
    assert merged.to_dict() == both.to_dict()
    assert merged.summary() == both.summary()
    assert merged.counts == both.counts
    twice = recorded(some).total()
    twice.merge(twice)
    assert twice.to_dict() == recorded([*some, *some]).total().to_dict()


@given(many)
def test_the_plain_form_comes_back(values):
    """A host reads it from a reply."""
    total = recorded(values).total()
    again = Histogram.from_dict(total.to_dict())
    assert again.to_dict() == total.to_dict()
    assert again.summary() == total.summary()
    assert sum(count for _, count in total.to_dict()["buckets"]) == len(values)


@pytest.mark.parametrize(
    "change",
    [
        {"buckets": [[1152, 1]]},
        {"buckets": [[-1, 1]]},
        {"buckets": [[0, -1]]},
        {"buckets": [[0, 1, 2]]},
        {"buckets": [["a", 1]]},
        {"buckets": None},
        {"calls": None},
        {"calls": -1},
        {"max_ns": 2**64},
    ],
)
def test_invalid_histograms_are_refused(change):
    """Each is a ValueError."""
    plain = recorded([1, 2, 3]).total().to_dict()
    with pytest.raises(ValueError, match="not a histogram"):
        Histogram.from_dict({**plain, **change})
    del plain["sum_ns"]
    with pytest.raises(ValueError, match="sum_ns"):
        Histogram.from_dict(plain)


@given(many)
def test_numpy_reads_the_buckets(values):
    """Each value is in the first bucket whose top is not below it."""
    counts = numpy.asarray(recorded(values).total().counts)
    tops = numpy.asarray(Histogram.tops())
    assert counts.dtype == tops.dtype == numpy.uint64
    assert not counts.flags.writeable
    expected = numpy.bincount(numpy.searchsorted(tops, numpy.array(values, numpy.uint64)), minlength=len(tops))
    assert (counts == expected).all()


@given(many, st.integers(5, 41))
def test_calls_within_a_bound(values, power):
    """The count is exact at the top of an octave, and includes all calls at the end."""
    total, bound = recorded(values).total(), 2**power - 1
    assert total.calls_within(bound) == sum(value <= bound for value in values)
    assert total.calls_within(2**63) == len(values)


def test_counts_and_sums():
    """Calls, errors and bytes; the summary is in microseconds."""
    recorder = recorded([1000, 2000, 3001])
    total = recorder.total()
    assert total.summary() == {
        "calls": 3,
        "errors": 2,
        "bytes_in": 30,
        "bytes_out": 60,
        "latency_us": {
            "p50": total.percentile(0.5) / 1000,
            "p90": 3.001,
            "p99": 3.001,
            "p99.9": 3.001,
            "max": 3.001,
        },
    }
    assert total.sum_ns == 6001
    assert recorder.errors_by_category == {"request": 2}


def test_an_empty_recorder_and_extremes():
    """Zeros without calls; values beyond the last bucket, or below 0, are clamped."""
    recorder = Recorder()
    assert set(recorder.total().summary()["latency_us"].values()) == {0}
    recorder.record(2**62)
    assert recorder.total().summary()["latency_us"]["max"] == 2**62 / 1000
    recorder.record(-5)
    assert recorder.total().percentile(0.5) == 0
    recorder.record(5, 0, 0, "python", 100 * SECOND)
    recorder.count("tokens", 5)
    recorder.reset()
    assert (recorder.calls, recorder.errors) == (0, 0)
    assert (recorder.errors_by_category, recorder.counters) == ({}, {})
    assert recorder.window(300, 100 * SECOND).calls == 0
    recorder.record(7, 0, 0, None, 5 * SECOND)
    assert recorder.window(60, 5 * SECOND).calls == 1


@given(
    st.lists(st.integers(0, 1000 * SECOND), min_size=1, max_size=400),
    st.integers(0, 400 * SECOND),
    st.sampled_from([60, 300]),
)
def test_a_window_holds_its_time_and_no_slot_more(ends, later, seconds):
    """It has all calls of the last one or five minutes, and those of at most 10 s before, by whole slots."""
    recorder, now = Recorder(), max(ends) + later
    for end in sorted(ends):
        recorder.record(1000, 1, 2, None, end)
    oldest = (now // SLOT_NS - seconds * SECOND // SLOT_NS) * SLOT_NS
    assert now - SLOT_NS - seconds * SECOND < oldest <= now - seconds * SECOND
    found = recorder.window(seconds, now)
    assert found.calls == found.bytes_in == sum(end >= oldest for end in ends)
    assert recorder.total().calls == len(ends)


def test_memory_follows_use():
    """Nothing beside the object itself before the first call; two bytes a call for the first
    ones; then what the octaves in use take; old slots' places are used again."""
    recorder = Recorder()
    unused = sys.getsizeof(recorder)
    assert unused < 200
    assert recorder.total().calls == recorder.window(60).calls == 0
    assert sys.getsizeof(recorder) == unused
    recorder.record(1_000_000, now=0)
    once = sys.getsizeof(recorder)
    assert once < 350
    for _ in range(255):
        recorder.record(1_000_000, now=0)
    assert sys.getsizeof(recorder) < once + 2 * 512
    for _ in range(10_000):
        recorder.record(1_000_000, now=0)
    assert sys.getsizeof(recorder) < once + 2 * 256
    for slot in range(1000):
        recorder.record(1_000_000, now=slot * SLOT_NS)
    assert sys.getsizeof(recorder) < 4096
    recorder.reset()
    assert sys.getsizeof(recorder) == unused


def test_counters():
    """Integers remain integers, and invalid amounts are refused."""
    recorder = Recorder()
    recorder.count("calls_made")
    recorder.count("calls_made", 2)
    recorder.count("cost_usd", 0.25)
    recorder.count("cost_usd", numpy.float64(0.5))
    assert recorder.counters == {"calls_made": 3, "cost_usd": 0.75}
    assert type(recorder.counters["cost_usd"]) is float
    for name, amount in (("a b", 1), ("é", 1), ("x_total", 1), ("", 1), ("a", -1)):
        with pytest.raises(ValueError, match="counter"):
            recorder.count(name, amount)
    for amount in (math.nan, math.inf):
        with pytest.raises(ValueError, match="counter"):
            recorder.count("cost_usd", amount)
    with pytest.raises(TypeError, match="NoneType"):
        recorder.count("cost_usd", None)
    assert recorder.counters == {"calls_made": 3, "cost_usd": 0.75}


def test_the_clock_is_monotonic():
    """The unit is nanoseconds."""
    first = now_ns()
    assert first <= now_ns() < first + 10**9
