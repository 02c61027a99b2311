"""Threads that all hang or wait, and a queue that is full of long requests."""

from __future__ import annotations

import json
import subprocess
import threading

import pytest

from bridge import Adapter, Dispatcher, Options
from peer import wait_until


def start(peer, count, command, args=None, **more):
    for request_id in range(count):
        peer.send({"id": request_id, "command": command, "args": args or {}, **more})


def reply_of(peer, request_id):
    """Return the reply with that id, dropping events and other replies before it."""
    while True:
        frame = peer.receive()
        if frame["id"] == request_id and "event" not in frame:
            return frame


def ask(peer, command, args=None, request_id="ask", **more):
    peer.send({"id": request_id, "command": command, "args": args or {}, **more})
    return reply_of(peer, request_id)


def worker_stats(peer):
    return ask(peer, "get_stats", {"include": ["worker"]}, "stats")["result"]["worker"]


def test_a_stuck_worker_reports_its_calls(start_peer):
    """In ping, in the statistics, in `overloaded`, once in the log; no longer when threads are free again."""
    peer = start_peer("--threads", "2", "--queue", "1", "--waiting", "1", "--stuck-after", "0.2",
                      adapter="hostile:adapter")  # fmt: skip
    assert "stuck_s" not in ask(peer, "ping")["result"]
    start(peer, 4, "sleep", {"seconds": 2})
    wait_until(lambda: ask(peer, "ping")["result"].get("stuck_s", 0) >= 0.2)
    assert worker_stats(peer)["stuck_s"] >= 0.2
    refused = ask(peer, "sleep", request_id="refused")
    assert refused["code"] == "overloaded"
    assert refused["details"]["stuck_s"] >= 0.2
    wait_until(lambda: "stuck_s" not in ask(peer, "ping")["result"])
    peer.close_input()
    assert peer.wait() == 0
    lines = [json.loads(line) for line in peer.stderr().splitlines()]
    stuck = [line for line in lines if line["message"].startswith("stuck: none of 2 threads")]
    assert {line["level"] for line in stuck} == {"WARNING"}
    assert "sleep 0 (" in stuck[0]["message"]


def test_a_stuck_worker_ends_if_configured(start_peer):
    """The status is 75, and its children end too, although the callers have their errors already."""
    peer = start_peer("--threads", "1", "--stuck-after", "0.3", "--when-stuck", "exit", "--quiet",
                      adapter="hostile:adapter")  # fmt: skip
    for _ in range(2):  # each until it runs
        peer.send({"id": 1, "command": "sleep", "args": {"seconds": 600}})
        wait_until(lambda: worker_stats(peer)["queue_depth"] == 0)
        peer.send({"id": 2, "command": "cancel", "args": {"id": 1}})
        assert reply_of(peer, 1)["code"] == "cancelled"
    assert peer.wait() == 75
    (line,) = [json.loads(line) for line in peer.stderr().splitlines()]
    assert (line["level"], line["message"].partition(":")[0]) == ("CRITICAL", "stuck")


def test_a_full_worker_that_makes_progress_is_not_stuck():
    """A call that checks for cancellation, or one that ends, is progress."""
    adapter = Adapter("steps")
    steps, done = threading.Semaphore(0), threading.Semaphore(0)

    @adapter.command("steps")
    def takes_steps(args, context):
        for _ in range(2):
            steps.acquire()
            context.check()
            done.release()
        return {}

    dispatcher = Dispatcher(adapter, Options(threads=1, stuck_after=1.0))
    call = threading.Thread(target=dispatcher.call, args=(b'{"id": 1, "command": "steps"}',))
    call.start()
    for _ in range(2):
        wait_until(lambda: dispatcher.worker.stuck_s >= 1.0)
        steps.release()
        done.acquire()
        wait_until(lambda: dispatcher.worker.stuck_s == 0.0)
    call.join()
    assert dispatcher.worker.stuck_s == 0.0


def test_a_worker_whose_calls_wait_for_the_host_is_not_stuck(start_peer):
    """This holds for any duration, and for as many calls as threads."""
    peer = start_peer("--threads", "1", "--stuck-after", "1", "--when-stuck", "exit",
                      adapter="hostile:adapter")  # fmt: skip
    ask(peer, "hello", {"offers": {"tools": True}})
    peer.send({"id": 1, "command": "ask_host", "args": {}})
    question = peer.receive()
    with pytest.raises(subprocess.TimeoutExpired):
        peer.process.wait(1.6)
    peer.send({"id": question["id"], "success": True, "result": 1})
    assert reply_of(peer, 1)["success"]


@pytest.mark.parametrize("end", ["resume", "cancel", "deadline", "eof"])
def test_paused_streams_leave_threads_for_other_calls(start_peer, end):
    """There are more paused streams than threads, and each can be ended."""
    peer = start_peer("--threads", "2", "--grace", "20", adapter="hostile:adapter")
    more = {"timeout_ms": 3000} if end == "deadline" else {}
    for request_id in range(8):
        args = {"size": 1_000_000}
        peer.send({"id": request_id, "command": "emit", "args": args, "stream": True, **more})
        assert ask(peer, "pause", {"id": request_id}, "pause")["result"]["paused"]
    wait_until(lambda: worker_stats(peer)["waiting_for_host"] == 8)
    assert ask(peer, "sleep", {"seconds": 0.01})["result"] == {"slept": 0.01}
    if end == "resume":
        assert ask(peer, "resume", {"id": 0})["result"]["resumed"]
        assert ask(peer, "cancel", {"id": 0})["result"]["cancelled"]
    elif end == "cancel":
        for request_id in range(8):
            peer.send({"id": "c", "command": "cancel", "args": {"id": request_id}})
            assert reply_of(peer, request_id)["code"] == "cancelled"
    elif end == "deadline":
        assert reply_of(peer, 7)["code"] == "deadline_exceeded"
    peer.close_input()
    while peer.receive_frame() is not None:
        pass
    assert peer.wait() == 0


def test_more_paused_streams_than_may_wait_are_overloaded(start_peer):
    """The stream that exceeds the limit ends; the others continue to wait."""
    peer = start_peer("--threads", "1", "--waiting", "2", adapter="hostile:adapter")
    for request_id in range(3):
        args = {"size": 1_000_000}
        peer.send({"id": request_id, "command": "emit", "args": args, "stream": True})
        assert ask(peer, "pause", {"id": request_id}, "pause")["result"]["paused"]
        if request_id < 2:
            wait_until(lambda n=request_id: worker_stats(peer)["waiting_for_host"] == n + 1)
    assert ask(peer, "sleep")["success"]
    stats = ask(peer, "get_stats", {"include": ["worker", "commands"]})["result"]
    assert stats["worker"]["waiting_for_host"] == 2
    assert stats["commands"]["emit"]["errors_by_category"] == {"resource": 1}


def test_a_tool_of_the_host_may_call_the_worker(start_peer):
    """This works with one thread, on which the call that uses the tool runs."""
    peer = start_peer("--threads", "1", adapter="hostile:adapter")
    ask(peer, "hello", {"offers": {"tools": True}})
    peer.send({"id": 1, "command": "ask_host", "args": {}})
    question = peer.receive()
    slept = ask(peer, "sleep")["result"]
    peer.send({"id": question["id"], "success": True, "result": slept})
    assert reply_of(peer, 1)["result"] == {"answer": slept}


def test_the_queue_is_bounded_in_bytes(start_peer):
    """A call that is too long for it is refused, unless it is the only one."""
    peer = start_peer("--threads", "1", "--queue-bytes", "10000", adapter="hostile:adapter")
    padding = "x" * 8000
    for request_id in range(3):
        peer.send({"id": request_id, "command": "sleep", "args": {"seconds": 0.3, "lane": padding}})
    refused = [peer.receive(), peer.receive()]
    assert {(reply["id"], reply["code"]) for reply in refused} == {
        (1, "overloaded"),
        (2, "overloaded"),
    }
    assert "--queue-bytes" in refused[0]["error"]
    stats = worker_stats(peer)
    assert 8000 < stats["queue_bytes"] < 10_000
    assert stats["refused"] == {"resource": 2}
    assert reply_of(peer, 0)["success"]
    assert ask(peer, "sleep", {"lane": "x" * 20_000})["success"]
    assert worker_stats(peer)["queue_bytes"] == 0
