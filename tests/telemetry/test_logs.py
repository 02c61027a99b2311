"""The log of a worker: JSON lines that name their call, levels, and no secrets."""

from __future__ import annotations

import json
import re

import pytest

from peer import wait_until

SECRET = "sk-never-to-be-seen-0123456789"


@pytest.fixture
def hostile(start_peer):
    peer = start_peer(adapter="hostile:adapter")
    assert peer.is_alive()
    return peer


def log_lines(peer):
    """Return all log lines of the worker after its end; each must be JSON."""
    return [json.loads(line) for line in stderr_lines(peer)]


def stderr_lines(peer):
    peer.close_input()
    assert peer.wait() == 0
    return peer.stderr().splitlines()


def test_each_line_names_its_call(hostile):
    """Lines of libraries' loggers on threads, and of the worker itself, also of inline calls."""
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


def test_no_output_contains_a_secret(hostile):
    """Messages, names, tracebacks and their causes, warnings, threads and replies, also of inline calls."""
    replies = [hostile.call(command, {"secret": SECRET}) for command in ("leak", "leak_on_thread")]
    assert [reply["error"] for reply in replies] == ["RuntimeError: refused: ***"] * 2
    written = stderr_lines(hostile)
    assert SECRET not in "".join(written)
    assert [line for line in written if not line.startswith("{")] == [
        *("printed: ***", "written: ***", "printed: ***", "written: ***"),
    ]
    lines = [json.loads(line) for line in written if line.startswith("{")]
    assert len(lines) == 9
    messages = [line["message"] for line in lines]
    assert messages.count("asked with ***") == 2
    assert sum("a warning about ***" in message for message in messages) == 1
    assert sum("no such key: ***" in line.get("error", "") for line in lines) == 6


def test_no_log_event_contains_a_secret(hostile):
    """A host that takes the logs gets the same lines."""
    hostile.call("hello", {"offers": {"logs": True}})
    hostile.send({"id": 1, "command": "leak", "args": {"secret": SECRET}})
    frames = [hostile.receive() for _ in range(6)]
    assert SECRET not in json.dumps(frames)
    events = [frame["data"] for frame in frames if frame.get("event") == "log"]
    assert len(events) == 5
    assert events[-1]["command"] == "leak"


def test_a_worker_that_does_not_start_shows_no_secret(start_peer):
    """Its logs are not set up by then; this holds at DEBUG too."""
    peer = start_peer(adapter="no_adapter:adapter", env={"NO_ADAPTER": SECRET})
    assert peer.wait() == 2
    assert peer.stderr() == (
        "dspex-bridge worker: error: adapter 'no_adapter:adapter' cannot be imported: RuntimeError: no way with ***\n"
    )
    peer = start_peer("--log-level", "DEBUG", adapter="no_adapter:adapter", env={"NO_ADAPTER": SECRET})
    assert peer.wait() == 2
    text = peer.stderr()
    assert SECRET not in text
    assert "Traceback" in json.loads(text.splitlines()[-2])["error"]


def test_the_level_is_set_at_run_time(hostile):
    """The level of all loggers, or of one, changes at once."""

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
    """It is set by the first frame, before the worker has loaded logging."""
    peer = start_peer(adapter="hostile:adapter")
    peer.call("set_log_level", {"level": "INFO"})
    peer.call("log_as", {"logger": "a", "level": "INFO"})
    loggers = [line["logger"] for line in log_lines(peer)]
    assert [logger for logger in loggers if logger != "bridge.worker"] == ["a"]


@pytest.mark.parametrize("args", [{}, {"level": "LOUD"}, {"level": 10}, {"level": "INFO", "logger": 1}])
def test_an_unknown_level_is_refused(hostile, args):
    """The error is invalid_args with the path."""
    reply = hostile.call("set_log_level", args)
    assert reply["code"] == "invalid_args"
    assert reply["details"]["path"].startswith("args")


def own_lines(peer):
    """Return level and message of the worker's own lines, with numbers of ms and pids as N."""
    lines = [line for line in log_lines(peer) if line["logger"] == "bridge.worker"]
    pattern = r"\d+\.\d+(?= m?s\b)|(?<=process )\d+|(?<=bridge )[\d.]+"
    return [(line["level"], re.sub(pattern, "N", line["message"])) for line in lines]


LIFE = [
    ("INFO", "dspex-bridge N starts with the process N"),
    ("INFO", "ready, with the adapter hostile"),
]


def test_info_has_the_life_cycle_and_no_calls(start_peer):
    """Start, readiness, and the reason of the end."""
    peer = start_peer("--log-level", "INFO", adapter="hostile:adapter")
    assert peer.is_alive()
    assert peer.call("sleep")["success"]
    assert peer.call("unknown")["code"] == "unknown_command"
    end = [("INFO", "the worker ends: the host has closed the pipe; 0 open calls")]
    assert own_lines(peer) == LIFE + end


@pytest.mark.parametrize("end", ["shutdown", "SIGTERM"])
def test_info_has_the_reason_why_a_worker_ends(start_peer, end):
    """The host's request, or a signal."""
    peer = start_peer("--log-level", "INFO", adapter="echo")
    assert peer.is_alive()
    if end == "shutdown":
        peer.call("shutdown")
        reason = "the host asked for it"
    else:
        peer.process.terminate()
        reason = "SIGTERM"
    assert peer.wait() == 0
    assert peer.receive_frame() is None
    assert own_lines(peer)[-1] == ("INFO", f"the worker ends: {reason}; 0 open calls")


def test_debug_has_a_line_for_each_call(start_peer):
    """Of the first as of all others, with command, id, session, outcome and time; on whatever
    thread it ends, by whatever ends it."""
    peer = start_peer("--log-level", "DEBUG", adapter="hostile:adapter")
    assert peer.call("ping", request_id="first")["success"]
    assert peer.call("sleep", request_id=2, session_id="s")["success"]
    assert peer.call("own_error_on_thread", request_id=3)["code"] == "quota_exceeded"
    assert peer.call("wait_politely", {"seconds": 60}, 4, timeout_ms=1)["code"] == ("deadline_exceeded")
    assert peer.call("unknown", request_id="y" * 3000)["code"] == "unknown_command"
    peer.send_frame(b'{"id": ' + b"9" * 4000 + b', "command": "ping"}')
    assert b"true" in peer.receive_frame()
    lines = own_lines(peer)
    calls = [message for level, message in lines if level == "DEBUG"]
    expected = [
        "ping 'first' in session None: ok in N ms",
        "sleep 2 in session 's': ok in N ms",
        "own_error_on_thread 3 in session 'default': quota_exceeded: ",
        "wait_politely 4 in session 'default': deadline_exceeded: no result within 1 ms in N ms",
        f"refused '{'y' * 200}…': unknown_command: Unknown command: unknown",
        "ping '(an integer of 13288 bits)' in session None: ok in N ms",
    ]
    for start in expected:
        (line,) = [message for message in calls if message.startswith(start)]
        calls.remove(line)
    assert all("its handler still runs" in message for message in calls)
    assert lines[: len(LIFE)] == LIFE


def test_debug_lines_follow_the_level(hostile):
    """The level is changed at run time."""
    hostile.call("sleep", request_id="before")
    hostile.call("set_log_level", {"level": "DEBUG"}, "on")
    hostile.call("sleep", request_id="between")
    hostile.call("set_log_level", {"level": "WARNING"}, "off")
    hostile.call("sleep", request_id="behind")
    lines = [message for _, message in own_lines(hostile)]
    assert [line.split()[1] for line in lines] == ["'on'", "'between'"]


def test_debug_has_threads_sessions_and_overload(start_peer):
    """Each overloaded call is a line at DEBUG; overload itself is one line at WARNING."""
    flags = ("--threads", "1", "--queue", "1", "--waiting", "1", "--session-ttl", "0.1")
    peer = start_peer("--log-level", "DEBUG", *flags, adapter="hostile:adapter")
    peer.call("sleep", session_id="old")
    for request_id in range(6):
        peer.send({"id": request_id, "command": "sleep", "args": {"seconds": 1.0}})
    replies = [peer.receive() for _ in range(6)]
    refused = [reply["id"] for reply in replies if not reply["success"]]
    assert len(refused) == 4
    late = peer.call("sleep", {"seconds": 2}, "late", timeout_ms=500)
    assert late["code"] == "deadline_exceeded"

    def has_expired():
        assert peer.call("sleep", session_id="other")["success"]  # sessions are looked at by calls
        return peer.call("list_sessions")["result"]["expired"]

    wait_until(has_expired)
    lines = own_lines(peer)
    for request_id in refused:
        assert any(line[1].startswith(f"refused {request_id}: overloaded: ") for line in lines)
    warnings = [message for level, message in lines if level == "WARNING"]
    assert warnings == ["calls are refused as overloaded (1 so far): 2 calls are open"]
    assert ("DEBUG", "sleep 'late' is over, but its handler still runs; 1 such threads") in lines
    assert ("DEBUG", "session 'old' has ended: expired") in lines


def test_a_failure_in_the_first_frame_is_logged_as_json(start_peer):
    """The line has the stack and no secrets, although logs are set up after the first reply."""
    peer = start_peer(adapter="hostile:adapter")
    assert peer.call("raise", request_id=1)["code"] == "handler_error"
    (line,) = log_lines(peer)
    assert line["message"] == "handler of raise failed"
    assert "ValueError: no such thing" in line["error"]
    assert "hostile.py" in line["error"]
