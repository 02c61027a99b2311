"""get_stats: counters and latencies by command and by session."""

from __future__ import annotations

import numpy
import pytest

from bridge import Client, Histogram
from peer import wait_until
from stats_hosts import Host


def test_a_call_is_counted_in_its_command_and_its_session(host):
    """Calls, bytes, and errors by category; inline commands count in no session."""
    for session_id in ("a", "a", "b"):
        host.call("ask", {"size": 1}, session_id=session_id)
    host.call("fail", session_id="b")
    host.call("ping", session_id="a")
    stats = host.stats("commands", "sessions")
    assert stats.keys() == {"commands", "sessions"}
    commands, sessions = stats["commands"], {row["session_id"]: row for row in stats["sessions"]}
    assert {name: row["calls"] for name, row in commands.items()} == {**{"ask": 3, "fail": 1, "ping": 1}}
    assert {name: row["calls"] for name, row in sessions.items()} == {"a": 2, "b": 2}
    assert commands["fail"]["errors_by_category"] == {"python": 1}
    assert sessions["b"]["errors_by_category"] == {"python": 1}
    assert (sessions["a"]["errors"], sessions["b"]["errors"]) == (0, 1)
    for count in ("bytes_in", "bytes_out"):
        of_commands = commands["ask"][count] + commands["fail"][count]
        assert sum(row[count] for row in sessions.values()) == of_commands > 0
    latency = sessions["a"]["latency_us"]
    assert list(latency) == ["p50", "p90", "p99", "p99.9", "max"]
    assert 0 < latency["p50"] <= latency["p99.9"] <= latency["max"]


def test_windows_and_totals(host):
    """Recent calls are in both; a window has the number of seconds that it covers."""
    host.call("ask")
    stats = host.stats("commands", "sessions")
    for row in (stats["commands"]["ask"], stats["sessions"][0]):
        assert list(row["windows"]) == ["1m", "5m"]
        for name, seconds in (("1m", 60), ("5m", 300)):
            window = row["windows"][name]
            assert seconds <= window.pop("seconds") < seconds + 10
            assert window == {key: row[key] for key in window}
            assert window.keys() == {"calls", "errors", "bytes_in", "bytes_out", "latency_us"}


def test_every_failure_has_its_category(gate):
    """Including failures after the handler, and requests that never become calls."""
    host = Host(gate, max_frame=4096, threads=1, queue=1)
    assert host.call("large", {"size": 5000})["code"] == "reply_too_large"
    assert host.call("unencodable")["code"] == "not_encodable"
    assert host.call("ask", {"size": "x"})["code"] == "invalid_args"
    assert host.call("wait", timeout_ms=1)["code"] == "deadline_exceeded"
    commands = host.stats("commands")["commands"]
    assert {name: row["errors_by_category"] for name, row in commands.items() if row["errors"]} == {
        "large": {"resource": 1},
        "unencodable": {"python": 1},
        "ask": {"request": 1},
        "wait": {"timeout": 1},
    }
    host.call("nope")
    host.dispatcher.call(b"\xc1")
    gate.set()
    wait_until(lambda: host.stats("worker")["worker"]["threads_lost"] == 0)
    gate.clear()
    for number in range(3):
        host.send(number + 10, "wait")
    host.wait_until_running(1)
    assert host.call("wait")["code"] == "overloaded"
    worker = host.stats("worker")["worker"]
    assert worker["refused"] == {"request": 1, "communication": 1, "resource": 2}


def test_adapters_count(host):
    """Counters are in the command and in the session; an invalid name is the handler's error."""
    for size in (5, 7):
        host.call("ask", {"size": size}, session_id="a")
    host.call("ask", session_id="b")
    host.call("ask_inline", session_id="b")
    stats = host.stats("commands", "sessions")
    counters = {name: row["counters"] for name, row in stats["commands"].items()}
    assert counters["ask"] == {"lm_calls": 3, "input_tokens": 12, "cost_usd": 0.75}
    assert counters["ask_inline"] == {"lm_calls": 10}
    assert {row["session_id"]: row["counters"] for row in stats["sessions"]} == {
        "a": {"lm_calls": 2, "input_tokens": 12, "cost_usd": 0.5},
        "b": {"lm_calls": 1, "input_tokens": 0, "cost_usd": 0.25},
    }
    assert host.call("count_wrongly")["code"] == "handler_error"


def test_calls_in_flight_and_waiting_calls(gate):
    """By command, by session, and in total: running, waiting for a turn, waiting for a thread."""
    host = Host(gate, threads=2)
    host.send(1, "change", session_id="a")  # runs
    host.send(2, "change", session_id="a")  # waits for its turn
    host.send(3, "wait", session_id="b")  # runs
    host.send(4, "wait", session_id="b")  # waits for a thread
    host.send(5, "ask", session_id="c")  # waits for a thread
    host.wait_until_running(2)
    stats = host.stats("commands", "sessions", "worker")
    sessions = {row["session_id"]: row for row in stats["sessions"]}
    for row, expected in (
        (stats["commands"]["change"], (2, 1)),
        (stats["commands"]["wait"], (2, 1)),
        (stats["commands"]["ask"], (1, 1)),
        (sessions["a"], (2, 1)),
        (sessions["b"], (2, 1)),
        (sessions["c"], (1, 1)),
        (stats["worker"], (5, 3)),
    ):
        assert (row["in_flight"], row["queue_depth"]) == expected, row
    gate.set()
    host.wait_for(1, 2, 3, 4, 5)
    stats = host.stats("commands", "sessions", "worker")
    for row in (*stats["commands"].values(), *stats["sessions"], stats["worker"]):
        assert (row["in_flight"], row["queue_depth"]) == (0, 0)


def test_the_sessions_last_used_come_first(host, gate):
    """At most `limit`, or the one named in the envelope or in args; ended ones are not included."""
    names = [f"s{number}" for number in range(105)]
    for name in names:
        host.call("ask", session_id=name)
    host.call("ask", session_id="s7")

    def listed(**args):
        return [row["session_id"] for row in host.stats("sessions", **args)["sessions"]]

    assert listed() == ["s7", *reversed(names[5:7] + names[8:])]
    assert listed(limit=3) == ["s7", "s104", "s103"]
    assert listed(session_id="s0") == ["s0"]
    assert listed(session_id="nobody") == []
    reply = host.call("get_stats", {"include": ["sessions"], "session_id": "x"}, session_id="s1")
    assert [row["session_id"] for row in reply["result"]["sessions"]] == ["s1"]
    assert len(host.dispatcher.sessions) == 105
    host.send(2, "wait", session_id="fresh")  # no call of it has ended yet
    host.wait_until_running(1)
    assert listed(limit=2) == ["fresh", "s7"]
    host.call("cleanup_session", session_id="s7")
    assert listed(limit=2) == ["fresh", "s104"]
    host.call("cleanup_session", session_id="fresh", timeout_ms=1)  # its call is open still
    assert listed(limit=1) == ["s104"]
    idle = [row["idle_s"] for row in host.stats("sessions")["sessions"]]
    assert idle == sorted(idle)
    assert idle[0] >= 0


def test_the_keys_without_include(host):
    """Those of the plain protocol, commands and worker, without single sessions."""
    host.call("ask")
    result = host.call("get_stats")["result"]
    assert result.keys() == {
        *("programs_count", "sessions_count", "command_count", "error_count", "refused_count"),
        *("in_flight", "threads_lost", "calls_written_off", "uptime", "memory_usage"),
        *("dspy_available", "gemini_available", "commands", "worker"),
    }
    assert host.call("get_stats", {"include": None})["result"].keys() == result.keys()
    assert host.stats() == {}


@pytest.mark.parametrize(
    ("args", "path", "said"),
    [
        ({"include": ["worker", "x"]}, "args.include[1]", "commands, sessions, process, histogr"),
        ({"format": "xml"}, "args.format", "map, prometheus"),
        ({"limit": 0}, "args.limit", "1"),
        ({"limit": 1001}, "args.limit", "1000"),
        ({"include": "worker"}, "args.include", "array"),
    ],
)
def test_unknown_parts_are_refused(host, args, path, said):
    """The error lists the known ones."""
    reply = host.call("get_stats", args)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert said in reply["error"]


def test_reset_state_resets_everything(host):
    """Commands, sessions, refused frames, counters and windows."""
    host.call("ask", {"size": 3})
    host.call("fail")
    host.call("nope")
    host.call("reset_state")
    stats = host.stats("commands", "sessions", "worker")
    assert set(stats["commands"]) == {"reset_state"}  # counted when it has ended
    assert stats["sessions"] == []
    assert stats["worker"]["refused"] == {}
    host.call("ask")
    (row,) = host.stats("sessions")["sessions"]
    assert (row["calls"], row["windows"]["5m"]["calls"], row["errors"]) == (1, 1, 0)
    assert host.stats("commands")["commands"]["ask"]["counters"]["lm_calls"] == 1


def test_a_real_worker_reports_its_process(peer):
    """Memory, threads and descriptors, which grow with their use."""
    before = peer.call("get_stats", {"include": ["process"]})["result"]["process"]
    assert before["rss"] > 1 << 20
    assert before["vms"] >= before["rss"]
    assert before["cpu_user"] + before["cpu_system"] > 0
    assert before["fds"] >= 5
    assert before["uptime"] > 0
    for name in ("collections", "collected", "uncollectable"):
        assert len(before["gc"][name]) == 3
    for number in range(4):
        peer.send({"id": number, "command": "sleep", "args": {"seconds": 60}})

    def during():
        args = {"include": ["process", "worker"]}
        return peer.call("get_stats", args, request_id="s")["result"]

    wait_until(lambda: during()["process"]["threads"] >= before["threads"] + 4)
    assert during()["worker"]["in_flight"] == 4
    for number in range(4):
        peer.send({"id": f"c{number}", "command": "cancel", "args": {"id": number}})
    replies = [peer.receive() for _ in range(8)]
    assert {reply["id"] for reply in replies if reply.get("code") == "cancelled"} == {0, 1, 2, 3}
    assert during()["worker"]["in_flight"] == 0


def test_a_host_merges_the_histograms_of_its_workers():
    """Two replies become one histogram, which numpy reads."""
    calls = (3, 400)
    parts = []
    for count in calls:
        with Client.start(adapter="echo") as client:
            for _ in range(count):
                client.call("echo", {"a": 1})
            args = {"include": ["commands", "histograms"]}
            parts.append(client.call("get_stats", args)["commands"]["echo"])
    merged = Histogram()
    for part in parts:
        merged.merge(Histogram.from_dict(part["histogram"]))
    assert merged.calls == sum(calls)
    assert merged.bytes_in == sum(part["bytes_in"] for part in parts)
    counts, tops = numpy.asarray(merged.counts), numpy.asarray(Histogram.tops())
    median = tops[numpy.searchsorted(numpy.cumsum(counts), sum(calls) / 2)]
    assert merged.percentile(0.5) == median
    assert merged.summary()["latency_us"]["max"] == max(p["latency_us"]["max"] for p in parts)
    window = Histogram.from_dict(parts[1]["windows"]["5m"]["histogram"])
    assert window.to_dict() == parts[1]["histogram"]


def test_histograms_and_summaries(host):
    """Sessions have them too; `histograms` alone includes the commands."""
    host.call("ask")
    assert host.stats("histograms").keys() == {"commands"}
    stats = host.stats("histograms", "sessions")
    assert stats.keys() == {"sessions"}
    (row,) = stats["sessions"]
    total = Histogram.from_dict(row["histogram"])
    assert total.summary() == {key: row[key] for key in total.summary()}
