"""Statistics as Prometheus text."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bridge.worker import exporters
from peer import wait_until


def samples(text):
    """Return {(name, labels without their names…): value}, and the types of the families."""
    families = list(text_string_to_metric_families(text))
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }
    assert len(values) == sum(len(family.samples) for family in families)
    return values, {family.name: family.type for family in families}


def test_prometheus_text_has_the_calls(host, gate):
    """It is read with the client library's parser."""
    exporters.load(host.dispatcher.worker)
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
    """They are cumulative counts of calls within their bound, with sum and count."""
    exporters.load(host.dispatcher.worker)
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
    """There are at most `limit`, each a summary without buckets; any id is a label."""
    exporters.load(host.dispatcher.worker)
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
    """With the flag, once the library is loaded; without it, the error explains what to do."""
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


def test_a_worker_without_the_library_reports_it(start_peer, tmp_path):
    """It reports it on stderr at its start and in the reply, and works otherwise."""
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
