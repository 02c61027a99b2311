"""Comparisons of runs: real differences, noise, and runs that cannot be compared."""

from __future__ import annotations

import msgspec
import numpy
import pytest

from bench_runs import synthetic, written
from bridge.bench import compare, figures, payloads
from bridge.bench.estimates import differ, estimate
from bridge.bench.report import Cell, Report


def test_comparing_tells_a_real_difference_from_noise():
    """Of three runs of each build, in a hundred trials, only the slower format is reported."""
    for seed in range(0, 300, 3):
        old = [synthetic(seed + run) for run in range(3)]
        slower = [synthetic(1000 + seed + run, f3=1.15) for run in range(3)]
        found = compare(old, slower)
        assert (found.compared, found.runs) == (10, (3, 3))
        assert [change.format for change in found.changes] == ["f3"]
        assert found.changes[0].ratio == pytest.approx(1.15, abs=0.06)
        assert (found.uncertain, found.exit_status) == ([], 3)
        assert compare(slower, old).exit_status == 0  # quicker is no failure
        same = compare(old, [synthetic(1000 + seed + run) for run in range(3)])
        assert (same.changes, same.uncertain, same.exit_status) == ([], [], 0)


def test_runs_of_one_build_that_differ_hide_smaller_differences():
    """Noise of one format counts for the same step of all formats."""
    old = [synthetic(1), synthetic(2, f0=1.4), synthetic(3)]
    new = [synthetic(4, f3=1.3), synthetic(5, f3=1.3), synthetic(6, f3=1.3)]
    assert compare(old, new).changes == []
    new = [synthetic(4, f3=1.6), synthetic(5, f3=1.6), synthetic(6, f3=1.6)]
    assert [change.format for change in compare(old, new).changes] == ["f3"]


@pytest.mark.parametrize(("olds", "news"), [(1, 1), (3, 1), (2, 3)])
def test_with_too_few_runs_a_difference_is_uncertain(olds, news):
    """The exit status of uncertain differences is 4."""
    old = [synthetic(run) for run in range(olds)]
    found = compare(old, [synthetic(100 + run, f3=1.15) for run in range(news)])
    assert found.changes == []
    assert [change.format for change in found.uncertain] == ["f3"]
    assert found.exit_status == 4
    assert "it takes at least 3 runs" in figures.verdict(found)
    assert compare(old, [synthetic(100)] * news).exit_status == 0


def test_other_differences_between_runs_are_reported():
    """Another machine, another version, a cell that became N/A."""
    old, new = synthetic(1), synthetic(1)
    old.machine, new.machine = {"cpu": "old"}, {"cpu": "new"}
    old.formats[0].versions, new.formats[0].versions = {"x": "1"}, {"x": "2"}
    new.cells[0] = Cell("f0", "p", reason="broken")
    found = compare(old, new)
    unknown = "unknown whether the messages are equal: p"
    assert found.unlike == ["cpu: old → new", "x: 1 → 2", unknown]
    assert [(change.step, change.reason) for change in found.changes] == [("N/A", "broken")]
    assert found.exit_status == 3
    back = compare(new, old)
    assert [change.reason for change in back.changes] == ["no longer N/A (broken)"]
    assert back.exit_status == 0


def of_payload(report: Report, **facts) -> Report:
    """Return the report with other facts of its payload."""
    (payload,) = report.payloads
    return msgspec.structs.replace(report, payloads=[msgspec.structs.replace(payload, **facts)])


def test_differences_in_measurement_are_reported():
    """Starts, rounds, and a load that differs by a process."""
    old, new = (of_payload(synthetic(1), digest="a") for _ in range(2))
    old.options, new.options = {"starts": 9, "rounds": 1}, {"starts": 3, "rounds": 2}
    old.machine = {"load_before": [0.2, 0, 0], "load_after": [1.0, 0, 0]}
    new.machine = {"load_before": [0.9, 0, 0], "load_after": [4.0, 0, 0]}
    assert compare(old, new).unlike == ["starts: 9 → 3", "rounds: 1 → 2", "load_after: 1.0 → 4.0"]


def test_other_messages_are_not_compared():
    """Payloads of one name are compared by hash, or by count and bytes if an older report has no hash."""
    old, new = synthetic(1), synthetic(1, f3=2.0)
    same = compare(of_payload(old, digest="a"), of_payload(new, digest="a"))
    assert [change.format for change in same.uncertain] == ["f3"]
    assert same.unlike == []
    longer = msgspec.structs.replace(new, cells=[msgspec.structs.replace(cell, bytes=2.0) for cell in new.cells])
    for was, now in [
        (of_payload(old, digest="a"), of_payload(new, digest="b")),
        (old, of_payload(new, messages=2)),
        (old, longer),
    ]:
        found = compare(was, now)
        assert (found.compared, found.changes) == (0, [])
        assert found.unlike == ["p: other messages, not compared"]


def test_changed_sizes_are_reported():
    """The times of equal messages are compared, and their sizes are reported."""
    old, new = (of_payload(synthetic(1), digest="a") for _ in range(2))
    new.cells[0].bytes = 3.0
    found = compare(old, new)
    assert found.compared == 10
    assert found.unlike == ["bytes of p as f0: 1.0 → 3.0"]


@pytest.mark.parametrize(("plain", "compared"), [(True, 10), (False, 0)])
def test_text_that_was_measured_in_another_way_is_not_compared(plain, compared):
    """In reports of method 1, only payloads that are ASCII can be compared."""
    new = of_payload(msgspec.structs.replace(synthetic(1), method=2), digest="a", ascii=plain)
    found = compare(synthetic(1), new)
    assert found.compared == compared
    assert found.unlike[0] == "method: 1 → 2"
    assert ("p: its text was encoded by another method, not compared" in found.unlike) != plain


def test_messages_have_their_hash(tmp_path):
    """Equal messages have equal hashes; other types or orders have others."""
    texts = [b'{"a":1,"b":"x"}', b'{"b":"x","a":1}', b'{"a":1.0,"b":"x"}', b'{"a":1,"b":"\\u00e9"}']
    made = [payloads.from_file(written(tmp_path, "m.json", text)) for text in texts]
    assert len({payload.digest for payload in made}) == len(texts)
    again = payloads.from_file(written(tmp_path, "m.json", b" " + texts[0]))
    assert again.digest == made[0].digest
    assert [payload.ascii for payload in made] == [True, True, True, False]


def test_one_start_claims_less():
    """Intervals of one start do not include differences from start to start."""
    old, new = synthetic(1), synthetic(2, f3=1.15)
    new.options = {"starts": 1}
    assert compare(old, new).uncertain == []


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 15])
def test_estimates_agree_with_a_drawn_bootstrap(count):
    """The median is numpy's; the interval agrees with a hundred thousand resamples."""
    rng = numpy.random.default_rng(count)
    samples = rng.normal(100, 10, count)
    found = estimate(list(samples))
    assert found.median == pytest.approx(numpy.median(samples))
    drawn = numpy.sort(rng.choice(samples, (100_000, count)), axis=1)
    lower, upper = drawn[:, (count - 1) // 2], drawn[:, count // 2]
    assert found.low == numpy.percentile(lower, 2.5, method="inverted_cdf")
    assert found.high == numpy.percentile(upper, 97.5, method="inverted_cdf")


def test_differing_needs_both():
    """The intervals must not overlap, and the difference must exceed the threshold."""
    base = estimate([100, 101, 102])
    assert differ(base, estimate([110, 111, 112]), 0.05)
    assert differ(base, estimate([90, 91, 92]), 0.05)
    assert not differ(base, estimate([103, 104, 105]), 0.05)
    assert not differ(base, estimate([100, 150, 160]), 0.05)
