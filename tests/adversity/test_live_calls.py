"""Many calls at once on a real worker: deadlines, cancellation, events, calls into the host."""

from __future__ import annotations

import random
import time

import msgspec
import pytest

from peer import wait_until


@pytest.fixture
def hostile(start_peer):
    return start_peer(adapter="hostile:adapter")


def send(peer, request_id, command, args=None, **more):
    peer.send({"id": request_id, "command": command, "args": args or {}, **more})


def by_id(peer, count):
    """Return that many frames, by their ids."""
    replies = {}
    for _ in range(count):
        reply = peer.receive()
        assert reply["id"] not in replies, "two replies to one request"
        replies[reply["id"]] = reply
    return replies


def test_a_cancelled_call_is_answered_once_and_its_work_stops(hostile):
    """The call gets `cancelled`, the cancelling request gets true, and the id can be used again."""
    send(hostile, 1, "wait_politely", {"seconds": 60})
    wait_until(lambda: hostile.call("get_stats", request_id="s")["result"]["in_flight"] == 1)
    send(hostile, 2, "cancel", {"id": 1})
    replies = by_id(hostile, 2)
    assert (replies[1]["code"], replies[1]["category"]) == ("cancelled", "request")
    assert replies[2]["result"] == {"id": 1, "cancelled": True}
    assert hostile.call("wait_politely", request_id=1)["success"]
    wait_until(lambda: hostile.call("get_stats")["result"]["threads_lost"] == 0)


def test_cancel_before_the_start(start_peer):
    """A call that waits for a thread never starts."""
    peer = start_peer("--threads", "1", adapter="hostile:adapter")
    send(peer, 1, "sleep", {"seconds": 0.3})
    send(peer, 2, "update_session_data", {"key": "a", "value": 1})
    send(peer, 3, "cancel", {"id": 2})
    replies = by_id(peer, 3)
    assert replies[2]["code"] == "cancelled"
    assert replies[1]["success"]
    assert peer.call("get_session_data")["result"]["data"] == {}


def test_cancel_after_the_end_and_of_an_unknown_id(hostile):
    """The result is false, and nothing else happens."""
    assert hostile.call("sleep", request_id=1)["success"]
    for unknown in (1, 99, "x"):
        result = hostile.call("cancel", {"id": unknown}, request_id=5)["result"]
        assert result == {"id": unknown, "cancelled": False}
    assert hostile.call("cancel", {}, request_id=5)["code"] == "invalid_args"


def test_a_cancelled_call_in_its_sessions_queue_does_not_stop_the_queue(start_peer):
    """Later calls of the session run."""
    peer = start_peer(adapter="hostile:adapter")
    send(peer, 1, "sleep", {"seconds": 0.2, "session_id": "s"})
    for request_id in (2, 3, 4):
        args = {"key": str(request_id), "value": 1, "session_id": "s"}
        send(peer, request_id, "update_session_data", args)
    send(peer, 5, "cancel", {"id": 3})
    replies = by_id(peer, 5)
    assert replies[4]["success"]
    data = peer.call("get_session_data", {"session_id": "s"})["result"]["data"]
    assert {"2", "4"} <= set(data)


def test_deadlines(hostile):
    """The caller gets its error at once; time in the queue counts; deadlines of zero or less have passed."""
    started = time.monotonic()
    reply = hostile.call("sleep", {"seconds": 5}, timeout_ms=50)
    assert (reply["code"], reply["details"]["timeout_ms"]) == ("deadline_exceeded", 50)
    assert time.monotonic() - started < 3
    for timeout in (0, -1):
        assert hostile.call("sleep", timeout_ms=timeout, request_id=2)["code"] in ("deadline_exceeded",)
    assert hostile.call("wait_politely", timeout_ms=1e300)["result"]["remaining"] > 3600
    nan = {"id": 3, "command": "sleep", "timeout_ms": float("nan")}
    hostile.send_frame(msgspec.msgpack.encode(nan))
    assert b"deadline_exceeded" in hostile.receive_frame()
    assert hostile.call("sleep", timeout_ms="soon")["code"] == "invalid_request"


def test_a_deadline_in_the_queue(start_peer):
    """A call whose deadline passes in the queue never starts."""
    peer = start_peer("--threads", "1", adapter="hostile:adapter")
    send(peer, 1, "sleep", {"seconds": 0.3})
    send(peer, 2, "update_session_data", {"key": "a", "value": 1}, timeout_ms=50)
    assert peer.receive()["code"] == "deadline_exceeded"
    assert peer.receive()["id"] == 1
    assert peer.call("get_session_data")["result"]["data"] == {}


def test_lost_threads_are_replaced_up_to_a_limit(start_peer):
    """Then new calls are overloaded, ping works, and the statistics count lost threads."""
    peer = start_peer("--threads", "2", adapter="hostile:adapter")
    written_off = 0
    while written_off < 3:  # a call whose deadline came before a thread has none to lose
        send(peer, 1, "sleep", {"seconds": 8}, timeout_ms=50)
        assert peer.receive()["code"] == "deadline_exceeded"
        stats = peer.call("get_stats", request_id="s")["result"]
        written_off = stats["calls_written_off"]
    assert stats["threads_lost"] == 3
    reply = peer.call("sleep", request_id="refused")
    assert (reply["code"], reply["category"]) == ("overloaded", "resource")
    assert reply["details"]["retry_after"] > 0
    assert peer.is_alive()
    wait_until(lambda: peer.call("get_stats", request_id="s")["result"]["threads_lost"] == 0)
    assert peer.call("sleep", request_id="again")["success"]


def test_a_full_queue_refuses_at_once(start_peer):
    """--threads and --queue limit the number of open calls."""
    peer = start_peer("--threads", "2", "--queue", "3", adapter="hostile:adapter")
    for request_id in range(8):
        send(peer, request_id, "sleep", {"seconds": 0.3})
    replies = by_id(peer, 8)
    refused = [i for i, reply in replies.items() if not reply["success"]]
    assert refused == [5, 6, 7]
    assert all(replies[i]["code"] == "overloaded" for i in refused)


def test_replies_under_load_find_their_requests(hostile):
    """Each request gets one reply, in any order, with pings in between."""
    numbers = list(range(400))
    random.Random(1).shuffle(numbers)
    for number in numbers:
        send(hostile, number, "sleep", {"seconds": (number % 7) / 100})
        send(hostile, f"p{number}", "ping")
    replies = by_id(hostile, 800)
    for number in numbers:
        assert replies[number]["result"] == {"slept": (number % 7) / 100}
        assert replies[f"p{number}"]["success"]


def test_events_are_sent_only_to_streams(hostile):
    """They arrive in order and before the reply; a call without `stream` has none."""
    assert hostile.call("emit", {"size": 5})["result"] == {"streaming": False}
    send(hostile, 2, "emit", {"size": 5}, stream=True)
    frames = [hostile.receive() for _ in range(6)]
    assert frames[:5] == [{"id": 2, "event": "number", "data": n} for n in range(5)]
    assert frames[5]["result"] == {"streaming": True}


def test_events_that_cannot_be_sent_fail_their_call(start_peer):
    """These are numbers that JSON does not have, and events longer than a frame; inline calls may emit."""
    peer = start_peer("--max-frame", "4096", adapter="hostile:adapter")
    reply = peer.call("emit_not_finite", stream=True)
    assert (reply["code"], reply["details"]["path"]) == ("not_encodable", "data.value")
    assert peer.call("emit_large", {"size": 5000}, stream=True)["code"] == "reply_too_large"
    send(peer, 3, "emit_inline", stream=True)
    assert [peer.receive().get("event"), peer.receive().get("event")] == ["number", None]
    peer.call("hello", {"offers": {"tools": True}})
    assert peer.call("ask_host_inline")["code"] == "not_allowed"


def test_a_paused_stream_waits_and_others_do_not(hostile):
    """pause holds back the events of one call, resume releases them, cancel ends a paused call."""
    send(hostile, 1, "emit", {"size": 100_000}, stream=True)
    while hostile.receive()["id"] != 1:
        pass
    send(hostile, "p", "pause", {"id": 1})
    while hostile.receive()["id"] != "p":
        pass
    send(hostile, 2, "emit", {"size": 3}, stream=True)
    seen = []
    while True:
        frame = hostile.receive()
        if frame["id"] == 2 and "success" in frame:
            break
        seen.append(frame["id"])
    assert seen.count(1) <= 1, "at most the event that was on its way"
    send(hostile, "r", "resume", {"id": 1})
    while hostile.receive()["id"] != 1:
        pass
    send(hostile, "p", "pause", {"id": 1})
    send(hostile, "c", "cancel", {"id": 1})
    replies = {}
    while not replies.keys() >= {1, "p", "c"}:
        frame = hostile.receive()
        if "success" in frame:
            replies[frame["id"]] = frame
    assert replies[1]["code"] == "cancelled"
    assert hostile.call("pause", {"id": 1}, request_id=9)["result"] == {"id": 1, "paused": False}


def test_timing_is_in_the_reply_on_request(hostile):
    """It contains microseconds and bytes; replies to other calls do not have it."""
    reply = hostile.call("sleep", {"seconds": 0.05}, timing=True)
    assert reply["result"] == {"slept": 0.05}
    timing = reply["timing"]
    assert set(timing) == {*("queue_us", "decode_us", "run_us", "encode_us", "bytes_in", "bytes_out")}
    assert timing["run_us"] >= 50_000
    assert all(value >= 0 for value in timing.values())
    assert hostile.call("ping", timing=True)["timing"]["bytes_in"] > 0
    assert "timing" not in hostile.call("ping")


def answer(peer, question, **reply):
    peer.send({"id": question["id"], **reply})


def test_a_handler_calls_the_host(hostile):
    """The worker's request has a separate id, and the handler gets the host's result."""
    send(hostile, 1, "ask_host")
    assert hostile.receive()["code"] == "not_allowed", "nothing was offered"
    accepted = hostile.call("hello", {"offers": {"tools": True, "new": True}})["result"]
    assert accepted["accepted"] == ["tools"]
    send(hostile, 1, "ask_host", {"size": 7})
    question = hostile.receive()
    assert question["id"].startswith("w")
    assert (question["command"], question["args"]) == ("question", {"size": 7})
    assert question["call_id"] == 1
    answer(hostile, question, success=True, result=[1, 2])
    assert hostile.receive()["result"] == {"answer": [1, 2]}


def test_unusual_replies_of_the_host(hostile):
    """Late and second replies are dropped; garbage and errors are errors of the handler's call."""
    hostile.call("hello", {"offers": {"tools": True}})
    send(hostile, 1, "ask_host", timeout_ms=300)
    question = hostile.receive()
    assert hostile.receive()["code"] == "deadline_exceeded"
    for _ in range(2):
        answer(hostile, question, success=True, result="late")
    answer(hostile, {"id": "w999"}, success=True, result="to nobody")
    answer(hostile, {"id": 5}, success=False, error="to nobody")
    assert hostile.is_alive()
    send(hostile, 2, "ask_host")
    question = hostile.receive()
    answer(hostile, question, success="perhaps")
    reply = hostile.receive()
    assert (reply["id"], reply["code"]) == (2, "invalid_frame")
    send(hostile, 2, "ask_host")
    question = hostile.receive()
    answer(hostile, question, success=False, error="no way", code="quota_exceeded")
    reply = hostile.receive()
    assert (reply["id"], reply["code"], reply["error"]) == (2, "quota_exceeded", "no way")


def test_cancelling_a_call_that_waits_for_the_host(hostile):
    """Its thread is free at once."""
    hostile.call("hello", {"offers": {"tools": True}})
    send(hostile, 1, "ask_host")
    hostile.receive()
    send(hostile, 2, "cancel", {"id": 1})
    assert by_id(hostile, 2)[1]["code"] == "cancelled"
    wait_until(lambda: hostile.call("get_stats")["result"]["threads_lost"] == 0)


def test_logs_go_to_a_host_that_offers_to_take_them(hostile):
    """They are events with the request's id and traceparent, and go to stderr when the offer ends."""
    hostile.is_alive()
    hostile.call("hello", {"offers": {"logs": True}})
    send(hostile, 7, "log", {"size": 1}, traceparent="00-0af7-b7ad-01")
    frames = [hostile.receive(), hostile.receive()]
    (event,) = [frame for frame in frames if "event" in frame]
    assert (event["id"], event["event"]) == (7, "log")
    data = event["data"]
    assert (data["level"], data["message"]) == ("WARNING", "hello 1")
    assert (data["request_id"], data["traceparent"]) == (7, "00-0af7-b7ad-01")
    hostile.call("hello", {"offers": {}})
    assert hostile.call("log", {"size": 2})["success"]
    hostile.close_input()
    hostile.wait()
    assert "hello 2" in hostile.stderr()


def test_a_host_that_ends_while_200_calls_are_open(start_peer):
    """All calls and the process end within the grace period."""
    peer = start_peer("--grace", "0.5", "--threads", "100", adapter="hostile:adapter")
    for request_id in range(200):
        command = ("sleep", "wait_politely")[request_id % 2]
        send(peer, request_id, command, {"seconds": 600})
    wait_until(lambda: peer.call("get_stats", request_id="s")["result"]["in_flight"] == 200)
    peer.close_input()
    assert peer.wait(10) == 0
