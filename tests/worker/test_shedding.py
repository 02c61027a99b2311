"""The queue under --queue-target: which calls are refused, when, and with what reply."""

from __future__ import annotations

import pytest

from bridge.worker import shedding
from bridge.worker.shedding import QueueDelay
from peer import wait_until
from stats_hosts import Host

TARGET, INTERVAL = 50, 1000


@pytest.fixture
def delay():
    return QueueDelay(TARGET, INTERVAL)


def late_after(delay, waits, times):
    """Note the waits at their times, and return those times at which a call that waited so long was late."""
    late = []
    for waited, now in zip(waits, times, strict=True):
        delay.note(waited, now)
        if delay.is_late(waited):
            late.append(now)
    return late


def test_a_queue_is_slow_once_each_call_of_an_interval_has_waited_too_long(delay):
    """From the next interval on, calls are late that have waited twice the target."""
    times = range(INTERVAL, 3 * INTERVAL, 100)
    assert late_after(delay, [101] * len(times), times) == list(range(2 * INTERVAL, 3 * INTERVAL, 100))
    assert not delay.is_late(2 * TARGET)
    assert delay.is_late(2 * TARGET + 1)


@pytest.mark.parametrize("waited", [0, TARGET])
def test_one_call_in_time_shows_that_the_queue_gets_shorter(delay, waited):
    """However long the others have waited."""
    times = range(INTERVAL, 5 * INTERVAL, 100)
    waits = [waited if now % INTERVAL == 500 else 900 for now in times]
    assert late_after(delay, waits, times) == []


def test_a_slow_queue_is_fast_again_after_an_interval_with_a_call_in_time(delay):
    """The interval of that call is still slow."""
    times = range(INTERVAL, 5 * INTERVAL, 100)
    waits = [10 if now == 2500 else 900 for now in times]
    late = late_after(delay, waits, times)
    assert late[0] == 2 * INTERVAL
    assert [now for now in late if now >= 3 * INTERVAL] == list(range(4 * INTERVAL, 5 * INTERVAL, 100))


def test_an_interval_without_calls_ends_what_was_slow(delay):
    """What waited an hour ago says nothing about now."""
    assert late_after(delay, [900, 900], [INTERVAL, 2 * INTERVAL]) == [2 * INTERVAL]
    assert late_after(delay, [900], [4 * INTERVAL]) == []


def test_the_oldest_call_of_a_queue_that_does_not_move_counts(delay):
    """Only when it has waited longer than the target: it may still be in time before."""
    for now in (INTERVAL, 2 * INTERVAL, 3 * INTERVAL):
        delay.note_oldest(TARGET, now)
    assert not delay.is_late(900)
    delay.note_oldest(900, 3 * INTERVAL)
    delay.note_oldest(900, 4 * INTERVAL)
    assert delay.is_late(900)


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(shedding, "INTERVAL_NS", 20_000_000)


def fill(host, count):
    """Occupy the threads of `host`, and queue `count` more calls. Return their ids."""
    threads = host.dispatcher.threads.limit
    for number in range(threads):
        host.send(f"runs {number}", "wait")
    host.wait_until_running(threads)
    for number in range(count):
        host.send(number, "ask")
    return range(count)


def test_calls_that_wait_for_busy_threads_are_refused(gate, quickly, caplog):
    """As overloaded, with retry_after; counted, logged once; those that run are left alone."""
    host = Host(gate, threads=2, queue_target=1.0)
    host.wait_for(*fill(host, 8))
    for number in range(8):
        reply = host.replies[number]
        assert (reply["code"], reply["recovery"]) == ("overloaded", "backoff_retry")
        assert reply["details"]["retry_after"] > 0
        assert reply["details"]["waited_ms"] >= 2
        assert "--queue-target 1" in reply["error"]
    stats = host.stats("worker", "commands")
    assert (stats["worker"]["calls_shed"], stats["worker"]["in_flight"]) == (8, 2)
    assert stats["worker"]["queue_depth"] == 0
    assert stats["commands"]["ask"]["errors_by_category"] == {"resource": 8}
    gate.set()
    host.wait_for("runs 0", "runs 1")
    assert all(host.replies[f"runs {number}"]["success"] for number in (0, 1))
    assert host.call("ask")["success"]
    assert len([record for record in caplog.records if "overloaded" in record.getMessage()]) <= 1


def test_without_a_target_calls_wait(gate, quickly):
    """This is the default."""
    host = Host(gate, threads=1)
    waiting = fill(host, 3)
    gate.set()
    host.wait_for(*waiting)
    assert all(host.replies[number]["success"] for number in waiting)
    assert host.stats("worker")["worker"]["calls_shed"] == 0


def test_calls_that_wait_for_their_session_only_are_not_refused(gate, quickly):
    """As long as there are threads."""
    host = Host(gate, threads=4, queue_target=1.0)
    for number in range(3):
        host.send(number, "change", session_id="a")
    host.wait_until_running(1)
    shed = host.dispatcher.calls
    looks = []
    look = host.dispatcher.calls._shedding._look
    host.dispatcher.calls._shedding._look = lambda: (looks.append(1), look())
    wait_until(lambda: len(looks) > 3)
    assert shed.shed == 0
    gate.set()
    host.wait_for(0, 1, 2)
    assert all(host.replies[number]["success"] for number in range(3))


def test_each_call_has_one_reply_when_it_is_cancelled_in_the_queue(gate, quickly):
    """Whether it is refused or cancelled first."""
    host = Host(gate, threads=1, queue_target=1.0)
    waiting = fill(host, 20)
    cancelled = [host.call("cancel", {"id": number})["result"]["cancelled"] for number in waiting]
    host.wait_for(*waiting)
    codes = [host.replies[number]["code"] for number in waiting]
    assert codes == ["cancelled" if was_open else "overloaded" for was_open in cancelled]
    assert host.dispatcher.calls.shed == codes.count("overloaded")
