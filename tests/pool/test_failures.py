"""What a pool does when a worker ends, hangs or is full: each call has one result, of its own."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from bridge import errors
from peer import wait_until


def pids_of(pool):
    return {slot["pid"] for slot in pool.status()["slots"]}


@pytest.fixture
def events():
    return []


@pytest.fixture
def marker(tmp_path):
    return str(tmp_path / "done")


def test_an_idempotent_call_is_made_once_more_elsewhere(start_pool, events, marker):
    pool = start_pool(on_event=events.append)
    assert pool.call("die", {"marker": marker}) in pids_of(pool)
    (retry,) = [event for event in events if event["event"] == "retry"]
    assert (retry["command"], retry["code"], retry["pool"]) == ("die", "worker_crashed", "pool")


def test_futures_and_streams_are_repeated_too(pool, marker):
    assert pool.submit("die", {"marker": marker + "1"}).result(60)
    assert [number for _, number in pool.stream("count", {"count": 0, "marker": marker + "2"})] == []
    numbers = []
    call = pool.submit("die", {"marker": marker + "3"}, on_event=lambda event, number: numbers.append(number))
    assert call.result(60)


def test_a_stream_that_has_delivered_is_not_repeated(pool, marker):
    """The caller would see its beginning twice."""
    numbers = []
    stream = pool.stream("count", {"count": 10, "marker": marker})
    for _, number in stream:
        numbers.append(number)
    assert numbers == list(range(10))
    with pytest.raises(errors.WorkerCrashed, match="SIGKILL"):
        stream.result(30)
    numbers.clear()
    call = pool.submit("count", {"count": 10, "marker": marker + "2"}, on_event=lambda _, each: numbers.append(each))
    with pytest.raises(errors.WorkerCrashed):
        call.result(30)
    assert numbers == list(range(10))


def test_a_call_that_is_not_idempotent_is_not_repeated(pool, marker):
    """Its error tells how the worker ended."""
    with pytest.raises(errors.WorkerCrashed, match="SIGKILL") as caught:
        pool.call("die_once", {"marker": marker})
    assert caught.value.details["exit_status"] == -signal.SIGKILL
    with pytest.raises(errors.WorkerCrashed):
        pool.submit("die_once", {"marker": marker + "2"}).result(30)


def test_a_call_on_which_two_workers_die_is_not_sent_to_a_third(start_pool):
    pool = start_pool(4)
    before = pids_of(pool)
    with pytest.raises(errors.WorkerCrashed):
        pool.call("die")
    wait_until(lambda: pool.status()["workers"] == {"ready": 4})
    assert len(before - pids_of(pool)) == 2


def test_a_call_that_no_worker_has_got_is_sent_to_another(pool):
    """Even if it is not idempotent: the worker had ended before."""
    for _ in range(10):
        slot = pool._slots.ready[0]
        os.kill(slot.pid, signal.SIGKILL)
        wait_until(lambda slot=slot: slot.connection.end_reason)
        assert {pool.call("work_once") for _ in range(4)}
        wait_until(lambda: pool.status()["workers"] == {"ready": 2})


def test_a_pool_of_one_worker_waits_for_the_next_one(start_pool, marker):
    pool = start_pool(1)
    assert pool.call("die", {"marker": marker})
    os.kill(pool._slots.ready[0].pid, signal.SIGKILL)
    assert pool.call("pid")


def test_a_retry_ends_with_the_deadline_of_the_call(pool):
    pool.call("work", {"seconds": 0})
    with pytest.raises((errors.DeadlineExceeded, errors.WorkerCrashed)):
        pool.call("die", {"seconds": 0.3}, timeout=0.4)


def test_workers_are_killed_under_many_callers(start_pool):
    """Every call has its own result; nothing is left."""
    pool = start_pool(3)
    wrong, failed, done = [], [], threading.Event()

    def call(caller):
        for number in range(60):
            text = "x" * (caller * 100 + number)
            try:
                if pool.call("length", {"text": text}) != len(text):
                    wrong.append(text)
            except errors.BridgeError as error:
                failed.append(error)

    def kill():
        while not done.wait(0.1):
            ready = pool._slots.ready
            if len(ready) > 1:
                os.kill(ready[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    callers = [threading.Thread(target=call, args=(caller,)) for caller in range(16)]
    for thread in (killer, *callers):
        thread.start()
    for thread in callers:
        thread.join()
    done.set()
    killer.join()
    assert wrong == []
    assert len(failed) < 16 * 60 / 20
    wait_until(lambda: pool.status()["workers"] == {"ready": 3})
    assert pool.status()["in_flight"] == 0


def test_a_stopped_worker_is_replaced(start_pool, events, monkeypatch):
    """And its calls are made elsewhere."""
    monkeypatch.setattr("bridge.pool.upkeep.CHECK", 0.2)
    monkeypatch.setattr("bridge.pool.upkeep.TICK", 0.1)
    pool = start_pool(on_event=events.append)
    pid = pool._slots.ready[0].pid
    os.kill(pid, signal.SIGSTOP)
    calls = [pool.submit("pid") for _ in range(20)]
    assert {call.result(60) for call in calls} <= pids_of(pool) - {pid}
    assert any("has not answered" in event.get("reason", "") for event in events)


def test_a_worker_that_holds_the_gil_is_replaced(start_pool, marker, monkeypatch):
    monkeypatch.setattr("bridge.pool.upkeep.CHECK", 0.2)
    monkeypatch.setattr("bridge.pool.upkeep.TICK", 0.1)
    pool = start_pool()
    before = pids_of(pool)
    assert pool.call("hold_gil", {"seconds": 300, "marker": marker}, timeout=60) in pids_of(pool)
    wait_until(lambda: pool.status()["workers"] == {"ready": 2})
    assert len(before & pids_of(pool)) == 1


def test_a_long_call_is_not_a_worker_that_hangs(start_pool, monkeypatch):
    monkeypatch.setattr("bridge.pool.upkeep.CHECK", 0.1)
    monkeypatch.setattr("bridge.pool.upkeep.TICK", 0.05)
    pool = start_pool()
    before = pids_of(pool)
    assert pool.call("work", {"seconds": 1.5}) in before
    assert pids_of(pool) == before


def test_full_workers_refuse_and_the_pool_tries_the_others(start_pool):
    """At last it is overloaded itself, and says when to try again."""
    pool = start_pool(2, flags=["--threads", "1", "--queue", "1"])
    calls = [pool.submit("work", {"seconds": 1}) for _ in range(4)]
    with pytest.raises(errors.Overloaded, match="busy") as caught:
        pool.call("work")
    assert caught.value.details["retry_after"] > 0
    assert {call.result(30) for call in calls} == pids_of(pool)
    assert pool.call("work")


def test_a_full_pool_grows_and_shrinks(start_pool):
    pool = start_pool((1, 3), flags=["--threads", "1", "--queue", "1"], idle=0.3)
    calls = [pool.submit("work", {"seconds": 1}) for _ in range(6)]
    assert len({call.result(30) for call in calls}) == 3
    assert pool.call("work")
    wait_until(lambda: pool.status()["workers"] == {"ready": 1})


def test_sessions_keep_a_worker_that_is_not_needed(start_pool):
    pool = start_pool((1, 2), flags=["--threads", "1", "--queue", "1"], idle=0.2)
    calls = [pool.submit("work", {"seconds": 0.5}) for _ in range(4)]
    for call in calls:
        call.result(30)
    for number in range(20):
        pool.call("add_name", {"name": "a"}, session_id=f"s{number}")
    time.sleep(1.0)
    assert all(pool.call("names", session_id=f"s{number}")[1] == ["a"] for number in range(20))


def test_workers_are_recycled_without_a_failed_call(start_pool, events):
    pool = start_pool(2, max_requests=50, on_event=events.append)
    before = pids_of(pool)
    deadline = time.monotonic() + 60
    while before & pids_of(pool) and time.monotonic() < deadline:
        for call in [pool.submit("work_once") for _ in range(20)]:
            call.result(30)
    assert not before & pids_of(pool)
    assert any(event["event"] == "recycle" for event in events)


def test_a_worker_that_takes_too_much_memory_is_recycled(start_pool, monkeypatch):
    pool = start_pool(2, max_rss=200 << 20)
    pid = pool.call("eat", {"count": 300 << 20})
    monkeypatch.setattr("bridge.pool.upkeep.CHECK", 0.2)  # not before: a worker that eats does not answer
    wait_until(lambda: pid not in pids_of(pool), 60)
    assert pool.call("pid") != pid


def test_a_worker_that_dies_while_its_successor_starts_has_only_one(start_pool):
    pool = start_pool(2)
    for _ in range(5):
        slot = pool._slots.ready[0]
        pool._supervisor.recycle(slot, "test")
        os.kill(slot.pid, signal.SIGKILL)
        wait_until(lambda pid=slot.pid: pid not in pids_of(pool))
        wait_until(lambda: set(pool.status()["workers"]) == {"ready"}, 60)
        assert pool.status()["workers"] == {"ready": 2}


def test_early_deaths_of_long_ago_do_not_keep_a_pool_from_growing(start_pool, monkeypatch):
    pool = start_pool((1, 2))
    for _ in range(5):
        slot = pool._slots.ready[0]
        os.kill(slot.pid, signal.SIGKILL)
        wait_until(lambda pid=slot.pid: pid not in pids_of(pool) and pool._slots.ready, 60)
    assert not pool._supervisor.grow()
    monkeypatch.setattr("bridge.pool.supervisor.FAILING_FOR", 0.0)
    assert pool._supervisor.grow()


def test_workers_are_recycled_by_age(start_pool):
    pool = start_pool(1, max_age=0.5)
    pid = pool.call("pid")
    wait_until(lambda: pool.call("pid") != pid, 60)


def test_large_calls_beside_small_ones(start_pool):
    pool = start_pool(2, max_frame=256 << 20)
    large = [pool.submit("length", {"text": "x" * (100 << 20)}) for _ in range(2)]
    assert all(pool.call("length", {"text": "ab"}) == 2 for _ in range(100))
    assert [call.result(100) for call in large] == [100 << 20] * 2


def test_a_crash_loop_is_told_with_the_last_output(start_pool, tmp_path, monkeypatch):
    """When no worker is ready; the pool recovers when workers start again."""
    monkeypatch.setattr("bridge.pool.supervisor.SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr("bridge.pool.supervisor.LONGEST_PAUSE", 0.1)
    monkeypatch.setattr("bridge.pool.supervisor.EJECTED_FOR", 0.2)
    store = tmp_path / "store"
    store.mkdir()
    pool = start_pool(2, flags=["--store", f"sqlite:{store}/sessions.db"])
    assert pool.call("pid")
    store.rename(tmp_path / "away")
    for pid in pids_of(pool):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "ready" not in pool.status()["workers"])
    with pytest.raises(errors.WorkerCrashed, match="did not start") as caught:
        pool.call("pid", timeout=60)
    assert "sessions.db" in caught.value.details["stderr"]
    (tmp_path / "away").rename(store)
    wait_until(lambda: pool.status()["workers"] == {"ready": 2}, 60)
    assert pool.call("pid")


def test_a_slot_whose_workers_fail_in_a_row_is_ejected(start_pool, tmp_path, monkeypatch):
    """Never more than half of the slots at a time; it is tried again later."""
    monkeypatch.setattr("bridge.pool.supervisor.SHORTEST_PAUSE", 0.01)
    monkeypatch.setattr("bridge.pool.supervisor.LONGEST_PAUSE", 0.05)
    monkeypatch.setattr("bridge.pool.supervisor.EJECTED_FOR", 0.2)
    store, ejected, most, moves = tmp_path / "store", set(), [0], []

    def note(event):
        if event["event"] != "slot":
            return
        if event["to"] == "ejected":
            ejected.add(event["slot"])
            most[0] = max(most[0], len(ejected))
        elif event["from"] == "ejected":
            ejected.discard(event["slot"])
            moves.append(event["to"])

    store.mkdir()
    pool = start_pool(2, flags=["--store", f"sqlite:{store}/sessions.db"], on_event=note)
    store.rename(tmp_path / "away")
    for pid in pids_of(pool):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: "starting" in moves, 60)
    (tmp_path / "away").rename(store)
    wait_until(lambda: pool.status()["workers"] == {"ready": 2}, 60)
    assert most[0] == 1
    assert pool.call("pid")
