"""Sessions of a pool: where they are, what becomes of them, what leaves the tables."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from bridge import errors
from peer import wait_until


def pid_of(pool, session_id):
    return pool.session_info(session_id)["pid"]


def kill(pool, session_id):
    """Kill the worker that has a session, and return when the pool has noticed it."""
    pid = pid_of(pool, session_id)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in {slot["pid"] for slot in pool.status()["slots"]})
    wait_until(lambda: pool.status()["workers"] == {"ready": 2})


def test_calls_of_a_session_go_to_its_worker(start_pool):
    """Also when it is named in the args."""
    pool = start_pool(4)
    for number in range(20):
        session_id = f"s{number}"
        pool.call("add_name", {"name": "a"}, session_id=session_id)
        pids = {pool.call("names", session_id=session_id)[0] for _ in range(5)}
        assert pids == {pid_of(pool, session_id)}
        assert pool.call("update_session_data", {"session_id": session_id, "key": "k", "value": 1})
        assert pool.call("get_session_data", session_id=session_id)["data"] == {"k": 1}
    assert len({pid_of(pool, f"s{number}") for number in range(20)}) > 1


def test_callers_that_begin_a_session_at_the_same_time_share_it(start_pool):
    pool = start_pool(4)
    ready = threading.Barrier(16)
    pids = []

    def begin():
        ready.wait()
        pids.append(pool.call("names", session_id="ann")[0])

    threads = [threading.Thread(target=begin) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 1


def test_a_session_is_lost_with_its_worker_once(pool):
    """Later calls begin a new session; other sessions and calls without one are not affected."""
    pool.call("add_name", {"name": "a"}, session_id="ann")
    kill(pool, "ann")
    assert pool.call("pid")
    with pytest.raises(errors.SessionLost, match="SIGKILL"):
        pool.call("names", session_id="ann")
    assert pool.call("names", session_id="ann")[1] == []


def test_a_lost_session_may_be_created_and_ended(pool):
    """Both tell what they did, so nothing has to be told before."""
    pool.call("add_name", {"name": "a"}, session_id="ann")
    kill(pool, "ann")
    assert pool.call("create_session", {"session_id": "ann"})["status"] == "created"
    kill(pool, "ann")
    assert pool.end_session("ann")["status"] == "cleaned"
    assert pool.call("names", session_id="ann")[1] == []


def test_with_affinity_hint_no_session_is_lost(start_pool):
    pool = start_pool(affinity="hint")
    pool.call("add_name", {"name": "a"}, session_id="ann")
    kill(pool, "ann")
    assert pool.call("names", session_id="ann")[1] == []


def test_a_durable_session_moves(start_pool, tmp_path):
    """With all that was acknowledged."""
    pool = start_pool(flags=["--store", f"sqlite:{tmp_path}/sessions.db"])
    pool.call("create_session", {"session_id": "ann", "durable": True})
    pool.call("update_session_data", {"key": "k", "value": 1}, session_id="ann")
    for value in range(2, 5):
        kill(pool, "ann")
        assert pool.call("get_session_data", session_id="ann")["data"] == {"k": value - 1}
        pool.call("update_session_data", {"key": "k", "value": value}, session_id="ann")
    pool.end_session("ann")
    with pytest.raises(errors.SessionNotFound):
        pool.session_info("ann")


def test_a_durable_session_of_an_earlier_pool_is_found(start_pool, tmp_path):
    flags = ["--store", f"sqlite:{tmp_path}/sessions.db"]
    pool = start_pool(flags=flags)
    pool.call("create_session", {"session_id": "ann", "durable": True})
    pool.call("update_session_data", {"key": "k", "value": 1}, session_id="ann")
    pool.stop()
    pool = start_pool(flags=flags)
    assert pool.session_info("ann")["durable"]
    kill(pool, "ann") if pool.session_info("ann").get("pid") else None
    assert pool.call("get_session_data", session_id="ann")["data"] == {"k": 1}


def test_ended_sessions_leave_the_tables(pool):
    for number in range(2000):
        pool.call("names", session_id=f"s{number}")
    assert pool.status()["sessions"] == 2000
    assert sum(slot["sessions"] for slot in pool.status()["slots"]) == 2000
    for number in range(1000):
        pool.end_session(f"s{number}")
    assert pool.status()["sessions"] == 1000
    pool.call("cleanup")
    assert pool.status()["sessions"] == 0


def test_sessions_ended_by_a_future_leave_the_tables(start_pool):
    """With their tools."""
    pool = start_pool(adapter="dspy")
    pool.register_tools([kill], session_id="ann")
    assert len(pool._functions) == 1
    assert pool.submit("cleanup_session", {"session_id": "ann"}).result(30)["status"] == "cleaned"
    assert pool.status()["sessions"] == 0
    assert len(pool._functions) == 0


def test_expired_and_evicted_sessions_leave_the_tables(start_pool, monkeypatch):
    """The workers are asked about idle ones."""
    monkeypatch.setattr("bridge.pool.sessions.FIRST_CHECK", 0.1)
    monkeypatch.setattr("bridge.pool.upkeep.CHECK", 0.1)
    monkeypatch.setattr("bridge.pool.upkeep.TICK", 0.05)
    pool = start_pool(flags=["--session-ttl", "1", "--max-sessions", "500"])
    for call in [pool.submit("names", session_id=f"s{number}") for number in range(4000)]:
        call.result(60)
    wait_until(lambda: pool.status()["sessions"] == 0, 60)


def test_ids_that_no_session_can_have_leave_nothing_behind(start_pool, monkeypatch):
    """The worker refuses them."""
    monkeypatch.setattr("bridge.pool.sessions.FIRST_CHECK", 0.1)
    monkeypatch.setattr("bridge.pool.upkeep.CHECK", 0.1)
    monkeypatch.setattr("bridge.pool.upkeep.TICK", 0.05)
    pool = start_pool()
    for wrong in ("", "x" * 1000):
        with pytest.raises(errors.InvalidArgs):
            pool.call("names", session_id=wrong)
    for wrong in (5, ["a"], {}):
        with pytest.raises(errors.BridgeError):
            pool.call("names", {"session_id": wrong})
    wait_until(lambda: pool.status()["sessions"] == 0)


def test_isolated_sessions_have_a_worker_each(start_pool):
    """Which ends with its session."""
    pool = start_pool(1, isolate="session")
    pids = {pool.call("names", session_id=f"s{number}")[0] for number in range(4)}
    assert len(pids) == 4
    assert pool.call("pid") not in pids
    pool.call("add_name", {"name": "a"}, session_id="s1")
    pid, names = pool.call("names", session_id="s1")
    assert names == ["a"]
    assert pid in pids
    pool.end_session("s1")
    wait_until(lambda: pid not in {slot["pid"] for slot in pool.status()["slots"]})
    os.kill(pid_of(pool, "s2"), signal.SIGKILL)
    wait_until(lambda: len(pool.status()["slots"]) == 3)
    with pytest.raises(errors.SessionLost):
        pool.call("names", session_id="s2")
    assert pool.call("names", session_id="s2")[1] == []


def test_idle_isolated_workers_end(start_pool):
    pool = start_pool(1, isolate="session", idle=0.2)
    pool.call("add_name", {"name": "a"}, session_id="ann")
    wait_until(lambda: pool.status()["workers"] == {"ready": 1})
    assert pool.status()["sessions"] == 0
    assert pool.call("names", session_id="ann")[1] == []


def test_the_number_of_isolated_workers_is_limited(start_pool):
    pool = start_pool(1, isolate="session", session_workers=2)
    for number in range(2):
        pool.call("names", session_id=f"s{number}")
    with pytest.raises(errors.Overloaded, match="limit") as caught:
        pool.call("names", session_id="s2")
    assert caught.value.details["retry_after"] > 0
    pool.end_session("s1")
    wait_until(lambda: len(pool.status()["slots"]) == 2)
    pool.call("names", session_id="s2")
