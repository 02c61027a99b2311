"""get_stats: what was called is what it says, by command and by session, as maps and as text."""

from __future__ import annotations

import json
import threading

import msgspec
import numpy
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge import Adapter, Client, Dispatcher, Histogram
from bridge._framing import Frame, Outbox
from bridge.worker import extras
from bridge.worker.control import control
from peer import wait_until


class Size(msgspec.Struct):
    size: int = 0


def make_adapter(gate: threading.Event) -> Adapter:
    adapter = Adapter("counting")

    @adapter.command("ask", Size)
    def ask(args, context):
        """As an adapter that asks language models."""
        context.count("lm_calls")
        context.count("input_tokens", args.size)
        context.count("cost_usd", 0.25)
        return {}

    @adapter.command("ask_inline", lane="inline")
    def ask_inline(args, context):
        context.count("lm_calls", 10)
        return {}

    @adapter.command("count_wrongly")
    def count_wrongly(args, context):
        context.count("lm calls")

    @adapter.command("large", Size)
    def large(args, context):
        return {"text": "x" * args.size}

    @adapter.command("fail")
    def fail(args, context):
        raise KeyError("no")

    @adapter.command("unencodable")
    def unencodable(args, context):
        return {"value": object()}

    @adapter.command("wait")
    def wait(args, context):
        gate.wait(30)
        return {}

    @adapter.command("change", lane="session")
    def change(args, context):
        gate.wait(30)
        return {}

    return adapter


@pytest.fixture
def gate():
    event = threading.Event()
    yield event
    event.set()


class Host:
    """A dispatcher, and the replies that came later."""

    def __init__(self, gate, **options):
        self.dispatcher = Dispatcher(make_adapter(gate), **options)
        self.dispatcher.add(control(self.dispatcher))
        self.replies = {}
        self.arrived = threading.Condition()

    def call(self, command, args=None, **more):
        request = {"id": "call", "command": command, "args": args or {}, **more}
        return json.loads(self.dispatcher.call(json.dumps(request).encode(), 30))

    def send(self, request_id, command, **more):
        """Without waiting."""
        request = {"id": request_id, "command": command, **more}
        self.dispatcher.path.answer(Frame.of(json.dumps(request).encode()), Outbox(), self.keep_reply)

    def keep_reply(self, outbox):
        reply = json.loads(outbox.payload())
        with self.arrived:
            self.replies[reply["id"]] = reply
            self.arrived.notify_all()

    def wait_for(self, *ids):
        with self.arrived:
            assert self.arrived.wait_for(lambda: all(i in self.replies for i in ids), 30)

    def stats(self, *include, **args):
        reply = self.call("get_stats", {"include": list(include), **args})
        assert reply["success"], reply
        return reply["result"]

    def text(self, *include, **args):
        return self.stats(*include, format="prometheus", **args)["text"]

    def wait_until_running(self, count):
        running = self.dispatcher.calls.open
        wait_until(lambda: sum(call.running for call in list(running.values())) == count)


@pytest.fixture
def host(gate):
    return Host(gate)


def test_a_call_is_counted_in_its_command_and_its_session(host):
    """Calls, bytes, errors by category; of inline commands no session."""
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


def test_the_windows_stand_beside_the_totals(host):
    """Calls of just now are in both; a window says how many seconds it covers."""
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
    """Also what fails behind its handler, and what never becomes a call."""
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
    """In the command and in the session; a wrong name is the handler's error."""
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


def test_what_is_in_flight_and_what_waits(gate):
    """By command, by session, and all together: running, waiting for a turn, for a thread."""
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
    """At most `limit`, or the one that is named, in the envelope or in args; ended ones go."""
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


def test_without_include_the_plain_keys_are_there(host):
    """Those of the plain protocol, commands and worker; nothing of single sessions."""
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
def test_what_there_is_not_is_refused(host, args, path, said):
    """And what there is is named."""
    reply = host.call("get_stats", args)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert said in reply["error"]


def test_reset_state_sets_all_back(host):
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


def test_a_real_worker_tells_of_its_process(peer):
    """Its memory, threads, descriptors; more of them when there are more."""
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
    """Of two replies one histogram, read with numpy."""
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


def test_histograms_stand_beside_their_summaries(host):
    """In sessions too; alone they bring the commands."""
    host.call("ask")
    assert host.stats("histograms").keys() == {"commands"}
    stats = host.stats("histograms", "sessions")
    assert stats.keys() == {"sessions"}
    (row,) = stats["sessions"]
    total = Histogram.from_dict(row["histogram"])
    assert total.summary() == {key: row[key] for key in total.summary()}


# Prometheus.


def samples(text):
    """{(name, labels without their names…): value}, and the types of the families."""
    families = list(text_string_to_metric_families(text))
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }
    assert len(values) == sum(len(family.samples) for family in families)
    return values, {family.name: family.type for family in families}


def test_prometheus_text_says_what_was_called(host, gate):
    """Read with the client library's own parser."""
    extras.load(host.dispatcher)
    for _ in range(300):
        host.call("ask", {"size": 2}, session_id='a"\\\n')
    host.call("fail")
    host.call("nope")
    host.send(7, "wait", session_id="b")
    host.send(8, "change", session_id="c")
    host.send(9, "change", session_id="c")
    host.wait_until_running(2)
    row = host.stats("commands", "histograms")["commands"]["ask"]
    values, types = samples(host.text())
    assert values["bridge_calls_total", "ask"] == 300
    assert values["bridge_errors_total", "fail", "python"] == 1
    assert values["bridge_refused_total", "request"] == 1
    assert values["bridge_received_bytes_total", "ask"] == row["bytes_in"]
    assert values["bridge_sent_bytes_total", "ask"] == row["bytes_out"]
    assert values["bridge_calls_in_flight", "change"] == 2
    assert values["bridge_calls_queued", "change"] == 1
    assert values["bridge_calls_queued", "wait"] == 0
    assert values["bridge_adapter_lm_calls_total", "ask"] == 300
    assert values["bridge_adapter_input_tokens_total", "ask"] == 600
    assert values["bridge_adapter_cost_usd_total", "ask"] == 75
    assert values["bridge_sessions",] == 4
    assert values["bridge_process_resident_memory_bytes",] > 1 << 20
    assert values["bridge_process_threads",] >= 2
    assert ("bridge_process_cpu_seconds_total", "user") in values
    assert ("bridge_process_gc_collections_total", "2") in values
    assert ("bridge_uptime_seconds",) in values
    assert types["bridge_call_duration_seconds"] == "histogram"
    assert types["bridge_calls"] == "counter"
    assert not [key for key in values if key[0].startswith("bridge_session_")]
    gate.set()
    host.wait_for(7, 8, 9)


def test_prometheus_buckets_are_exact(host):
    """Cumulative, each the number of calls within its bound; sum and count besides."""
    extras.load(host.dispatcher)
    recorder = host.dispatcher.commands["ask"].recorder
    times = [3 * 7**power for power in range(15)]
    for time in times:
        recorder.record(time)
    values, _ = samples(host.text())
    name = "bridge_call_duration_seconds"
    buckets = {
        next(float(label) for label in labels if label != "ask"): value
        for (sample, *labels), value in values.items()
        if sample == f"{name}_bucket" and "ask" in labels
    }
    assert len(buckets) == 29
    assert min(buckets) < 5e-6
    for bound, value in buckets.items():
        assert value == sum(time / 1e9 <= bound for time in times)
    assert values[f"{name}_count", "ask"] == len(times)
    assert values[f"{name}_sum", "ask"] == pytest.approx(sum(times) / 1e9)


def test_sessions_are_in_the_text_only_when_asked_for(host):
    """As many as `limit`, each a summary without buckets; any id is a label."""
    extras.load(host.dispatcher)
    odd = 'a"\\\n\u00e9'
    for session_id in ("first", "second", odd):
        host.call("ask", session_id=session_id)
    host.call("fail", session_id=odd)
    values, types = samples(host.text("sessions", limit=2))
    assert values["bridge_session_calls_total", odd] == 2
    assert values["bridge_session_calls_total", "second"] == 1
    assert ("bridge_session_calls_total", "first") not in values
    assert values["bridge_session_errors_total", *sorted([odd, "python"])] == 1
    assert values["bridge_session_adapter_lm_calls_total", odd] == 1
    assert types["bridge_session_call_duration_seconds"] == "summary"
    assert values["bridge_session_call_duration_seconds_count", odd] == 2


def test_a_worker_gives_prometheus_text_only_with_its_flag(start_peer):
    """With it once the library is loaded; without it the reply says what to do."""
    reply = start_peer().call("get_stats", {"format": "prometheus"})
    assert reply["code"] == "not_allowed"
    assert "--telemetry" in reply["error"]
    assert "dspex-bridge[telemetry]" in reply["error"]
    peer = start_peer("--telemetry", "--worker-id", "w7")

    def ask():
        return peer.call("get_stats", {"format": "prometheus"})

    first = ask()
    assert first["success"] or (first["code"], first["details"]) == (*("overloaded", {"retry_after": 0.1}),)
    wait_until(lambda: ask()["success"])
    for _ in range(5):
        peer.call("echo")
    result = ask()["result"]
    assert result["content_type"].startswith("text/plain; version=0.0.4")
    values, _ = samples(result["text"])
    assert values["bridge_calls_total", "echo"] == 5
    assert [key for key in values if key[0] == "bridge_worker_info" and "w7" in key]
    peer.close_input()
    assert peer.wait() == 0
    assert peer.stderr() == ""


def test_a_worker_without_the_library_says_so(start_peer, tmp_path):
    """On stderr at its start, and to who asks; it works all the same."""
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError(\"No module named 'prometheus_client'\")")
    peer = start_peer("--telemetry", env={"PYTHONPATH": str(tmp_path)})
    peer.call("ping")
    wait_until(lambda: peer.call("get_stats", {"format": "prometheus"})["code"] == "not_allowed")
    reply = peer.call("get_stats", {"format": "prometheus"})
    assert "No module named 'prometheus_client'" in reply["error"]
    assert "dspex-bridge[telemetry]" in reply["error"]
    assert peer.is_alive()
    peer.close_input()
    assert peer.wait() == 0
    (line,) = peer.stderr().splitlines()
    assert json.loads(line)["message"] == reply["error"]
