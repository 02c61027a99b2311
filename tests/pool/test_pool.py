"""The pool: calls, futures, streams, options, its end."""

from __future__ import annotations

import os
import pickle
from functools import partial

import pytest

from bridge import Pool, errors
from peer import wait_until


def test_calls_go_to_all_workers(pool):
    """Those of one caller, too."""
    pids = {pool.call("pid") for _ in range(200)}
    assert pids == {slot["pid"] for slot in pool.status()["slots"]}


def test_a_call_avoids_a_busy_worker(pool):
    """The one with fewer open calls gets it."""
    busy = [pool.submit("work", {"seconds": 30}) for _ in range(1)]
    wait_until(lambda: pool.status()["in_flight"] == 1)
    (idle,) = {pool.call("pid") for _ in range(50)}
    loads = {slot["pid"]: slot["in_flight"] for slot in pool.status()["slots"]}
    assert loads[idle] == 0
    busy[0].cancel()


def test_futures_have_their_results_and_errors(pool):
    calls = [pool.submit("length", {"text": "x" * n}) for n in range(100)]
    assert [call.result(30) for call in calls] == list(range(100))
    assert isinstance(pool.submit("length", {"text": 5}).exception(30), errors.InvalidArgs)
    call = pool.submit("length", {"text": "ab"}, timing=True)
    assert call.result(30) == 2
    assert call.timing["bytes_in"] > 0
    assert call.command == "length"


def test_a_future_can_be_cancelled(pool):
    """In the worker, too."""
    call = pool.submit("work", {"seconds": 30})
    with pytest.raises(TimeoutError):
        call.result(0.01)
    assert call.cancel()
    with pytest.raises(errors.Cancelled):
        call.result(30)
    wait_until(lambda: pool.status()["in_flight"] == 0)


def test_callbacks_of_a_future_may_call_the_pool(pool):
    results = []
    call = pool.submit("pid")
    call.add_done_callback(lambda done: results.append((done.result(), pool.call("pid"))))
    wait_until(lambda: results)
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(call)


def test_timeouts_are_those_of_the_client(pool):
    with pytest.raises(errors.DeadlineExceeded):
        pool.call("work", {"seconds": 30}, timeout=0.05)
    with pytest.raises(errors.DeadlineExceeded):
        pool.submit("work", {"seconds": 30}, timeout=0.05).result(30)
    with pytest.raises(ValueError, match="timeout"):
        pool.call("pid", timeout=-1)
    with pytest.raises(TypeError, match="timeout"):
        pool.submit("pid", timeout="soon")


def test_a_stream_has_events_and_a_result(pool):
    with pool.stream("count", {"count": 1000}) as stream:
        assert [number for _, number in stream] == list(range(1000))
        assert stream.result() == 1000
    stream = pool.stream("count", {"count": 1_000_000})
    for _, number in stream:
        if number == 10:
            break
    with pytest.raises(errors.Cancelled):
        stream.result(30)
    assert pool.stream("count", {"count": 1000}).result(30) == 1000


def test_a_listener_gets_events_in_order(pool):
    numbers = []
    call = pool.submit("count", {"count": 100}, on_event=lambda event, number: numbers.append(number))
    assert call.result(30) == 100
    assert numbers == list(range(100))


def test_an_exception_of_a_listener_ends_its_call(pool):
    def fail(event, data):
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        pool.submit("count", {"count": 100}, on_event=fail).result(30)


def test_a_cast_is_made(pool):
    pool.cast("add_name", {"name": "x"}, session_id="ann")
    assert pool.call("names", session_id="ann")[1] == ["x"]


@pytest.mark.parametrize(
    "options",
    [
        {"workers": 0},
        {"workers": (3, 2)},
        {"affinity": "no"},
        {"isolate": "call"},
        {"idle": -1},
        {"session_workers": 0},
        {"max_requests": 0},
        {"max_rss": -1},
        {"timeout": -1},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match=r"least|must be"):
        Pool(adapter="echo", **options)


@pytest.mark.parametrize(
    "options",
    [
        *({"workers": "two"}, {"session_workers": "2"}, {"max_requests": 2.5}, {"max_rss": "1G"}, {"on_event": 3}),
        *({"adapter": 3}, {"python": None}, {"flags": 3}, {"env": ["A=1"]}, {"timeout": "soon"}, {"max_age": "1h"}),
    ],
)
def test_options_of_a_wrong_type_are_refused(options):
    """Before anything is started, and not by what is started with them later."""
    with pytest.raises(TypeError, match=next(iter(options))):
        Pool(**{"adapter": "echo", **options})


def test_a_worker_that_does_not_start_fails_the_pool(capfd):
    with pytest.raises(errors.WorkerCrashed, match="did not start") as caught:
        Pool(2, adapter="nowhere:adapter")
    assert caught.value.category == "initialization"
    assert "nowhere" in caught.value.details["stderr"]


def test_statistics_are_those_of_all_workers(pool):
    for _ in range(50):
        pool.call("pid")
    stats = pool.stats()
    assert stats["commands"]["pid"]["calls"] == 50
    assert stats["commands"]["pid"]["histogram"]["calls"] == 50
    assert stats["commands"]["pid"]["windows"]["1m"]["calls"] == 50
    assert stats["process"]["rss"] == sum(worker["process"]["rss"] for worker in stats["workers"])
    assert {worker["pid"] for worker in stats["workers"]} == {slot["pid"] for slot in stats["pool"]["slots"]}


def test_health_and_status(pool):
    assert pool.health_check()["status"] == "healthy"
    status = pool.status()
    assert status["workers"] == {"ready": 2}
    assert [slot["slot"] for slot in status["slots"]] == [0, 1]
    assert "2 workers" in repr(pool)


def test_drain_lets_calls_end(start_pool):
    pool = start_pool()
    call = pool.submit("work", {"seconds": 0.3})
    wait_until(lambda: pool.status()["in_flight"] == 1)
    assert pool.drain()
    assert call.result(0) > 0
    with pytest.raises(errors.WorkerCrashed, match="stopped"):
        pool.call("pid")
    assert pool.status()["slots"] == []


def test_drain_gives_up_after_its_timeout(start_pool):
    pool = start_pool(flags=["--grace", "0"])
    call = pool.submit("work", {"seconds": 60})
    wait_until(lambda: pool.status()["in_flight"] == 1)
    assert not pool.drain(timeout=0.05)
    with pytest.raises(errors.BridgeError):
        call.result(30)


def test_a_stopped_pool_leaves_no_process(start_pool):
    pool = start_pool(4)
    pids = [slot["pid"] for slot in pool.status()["slots"]]
    pool.stop()
    pool.stop()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(errors.WorkerCrashed, match="stopped"):
        pool.submit("pid")


def test_a_fork_cannot_use_the_pool(pool):
    """Nor its open calls. Leaving a `with` block there does not stop the workers."""
    future, stream = (start("work", {"seconds": 60}) for start in (pool.submit, pool.stream))
    uses = [
        *(partial(use, "pid") for use in (pool.call, pool.submit, pool.stream)),
        *(pool.status, pool.stats, pool.health_check, future.result, future.exception, future.cancel),
        *(stream.result, stream.cancel, stream.close, stream.__enter__, lambda: list(stream)),
    ]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        words = []
        for use in uses:
            try:
                use()
            except RuntimeError as error:
                words.append(str(error))
        pool.__exit__(None, None, None)
        os.write(write, "|".join(words).encode())
        os._exit(0)
    os.close(write)
    with open(read) as answers:
        words = answers.read().split("|")
    assert len(words) == len(uses)
    assert all(each.startswith(("this Pool belongs", "this call belongs")) for each in words), words
    os.waitpid(pid, 0)
    assert pool.call("pid")
    assert future.cancel()
    assert stream.cancel()


def test_a_pool_cannot_be_pickled(pool):
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(pool)
