"""What a worker logs: a JSON object a line, whose call it was, from what level up, no secrets."""

from __future__ import annotations

import json

import pytest

SECRET = "sk-never-to-be-seen-0123456789"


@pytest.fixture
def hostile(start_peer):
    peer = start_peer(adapter="hostile:adapter")
    assert peer.is_alive()
    return peer


def log_lines(peer):
    """All that the worker has logged, at its end; every line must be JSON."""
    peer.close_input()
    assert peer.wait() == 0
    return [json.loads(line) for line in peer.stderr().splitlines()]


def test_each_line_says_whose_call_it_was(hostile):
    """Of a library's loggers on threads; where the worker logs itself, inline too."""
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    hostile.call("log", {"size": 5}, 7, session_id="s", traceparent=traceparent)
    hostile.call("log", {"size": 6}, "a")
    hostile.call("raise", request_id=8, session_id="t")
    first, second, third = log_lines(hostile)
    assert first["message"] == "hello 5"
    assert (first["level"], first["logger"]) == ("WARNING", "hostile")
    call = {"request_id": 7, "session_id": "s", "command": "log", "traceparent": traceparent}
    assert call.items() <= first.items()
    assert first["time"]
    assert (second["request_id"], second["session_id"]) == ("a", "default")
    assert "traceparent" not in second
    assert (third["request_id"], third["session_id"], third["command"]) == (8, "t", "raise")
    assert "ValueError: no such thing" in third["error"]


def test_no_secret_leaves_by_any_way(hostile):
    """Messages, names, tracebacks and their causes, warnings, threads, replies; inline too."""
    replies = [hostile.call(command, {"secret": SECRET}) for command in ("leak", "leak_on_thread")]
    assert [reply["error"] for reply in replies] == ["RuntimeError: refused: ***"] * 2
    lines = log_lines(hostile)
    assert len(lines) == 9
    assert SECRET not in json.dumps(lines)
    messages = [line["message"] for line in lines]
    assert messages.count("asked with ***") == 2
    assert sum("a warning about ***" in message for message in messages) == 1
    assert sum("no such key: ***" in line.get("error", "") for line in lines) == 6


def test_no_secret_leaves_as_an_event(hostile):
    """A host that takes the logs gets the same lines."""
    hostile.call("hello", {"offers": {"logs": True}})
    hostile.send({"id": 1, "command": "leak", "args": {"secret": SECRET}})
    frames = [hostile.receive() for _ in range(6)]
    assert SECRET not in json.dumps(frames)
    events = [frame["data"] for frame in frames if frame.get("event") == "log"]
    assert len(events) == 5
    assert events[-1]["command"] == "leak"


def test_a_worker_that_does_not_start_shows_no_secret(start_peer):
    """Though it has not set up its logs by then; with DEBUG neither."""
    peer = start_peer(adapter="no_adapter:adapter", env={"NO_ADAPTER": SECRET})
    assert peer.wait() == 2
    assert peer.stderr() == (
        "dspex-bridge worker: error: adapter 'no_adapter:adapter' cannot be imported:"
        " RuntimeError: no way with ***\n"
    )
    peer = start_peer(
        "--log-level", "DEBUG", adapter="no_adapter:adapter", env={"NO_ADAPTER": SECRET}
    )
    assert peer.wait() == 2
    text = peer.stderr()
    assert SECRET not in text
    assert "Traceback" in json.loads(text.splitlines()[-2])["error"]


def test_the_level_is_set_at_run_time(hostile):
    """Of all loggers, and of one; at once."""

    def logs(logger, level):
        assert hostile.call("log_as", {"logger": logger, "level": level})["success"]

    def set_level(level, **args):
        reply = hostile.call("set_log_level", {"level": level, **args})
        assert reply["result"] == {"status": "set", "level": level, "logger": args.get("logger")}

    logs("a", "INFO")
    set_level("INFO")
    logs("b", "INFO")
    set_level("CRITICAL")
    logs("c", "ERROR")
    set_level("DEBUG", logger="d")
    logs("d", "DEBUG")
    logs("d.below", "DEBUG")
    logs("e", "ERROR")
    set_level("WARNING")
    logs("f", "WARNING")
    lines = log_lines(hostile)
    assert [line["logger"] for line in lines] == ["b", "d", "d.below", "f"]


def test_a_level_that_is_set_before_anything_was_logged(start_peer):
    """In the first frame, when the worker has not loaded its logging."""
    peer = start_peer(adapter="hostile:adapter")
    peer.call("set_log_level", {"level": "INFO"})
    peer.call("log_as", {"logger": "a", "level": "INFO"})
    assert [line["logger"] for line in log_lines(peer)] == ["a"]


@pytest.mark.parametrize(
    "args", [{}, {"level": "LOUD"}, {"level": 10}, {"level": "INFO", "logger": 1}]
)
def test_a_level_that_is_none(hostile, args):
    """invalid_args with its place."""
    reply = hostile.call("set_log_level", args)
    assert reply["code"] == "invalid_args"
    assert reply["details"]["path"].startswith("args")


def test_the_process_s_own_secrets_are_never_forgotten():
    """Others are, the oldest first, when there are more than any worker has sessions."""
    from bridge import telemetry

    telemetry.keep_secret("the operator's own", own=True)
    for number in range(telemetry.KEPT + 1):
        telemetry.keep_secret(f"secret of {number}.")
    text = f"the operator's own, secret of 0., secret of {telemetry.KEPT}."
    assert telemetry.conceal(text) == "***, secret of 0., ***"
    telemetry._secrets.clear()
