"""Calls that end while they wait: they leave nothing behind, however long the calls before them take."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from peer import wait_until
from stats_hosts import Host


@pytest.mark.parametrize(("command", "threads"), [("wait", 1), ("change", 4)])
def test_a_call_that_ends_in_the_queue_leaves_nothing_there(gate, command, threads):
    """Its request is freed, while the call before it still has the thread or the turn; later calls get theirs."""
    host = Host(gate, threads=threads, queue=100)
    host.send("first", command, session_id="s")
    host.wait_until_running(1)
    tracemalloc.start()
    try:
        for number in range(50):
            host.send(number, command, session_id="s", timeout_ms=1, args={"padding": "x" * 100_000})
        host.wait_for(*range(50))
        wait_until(lambda: not host.dispatcher.calls.bytes > 1000)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert {host.replies[number]["code"] for number in range(50)} == {"deadline_exceeded"}
    assert held < 1_000_000
    host.send("last", command, session_id="s")
    gate.set()
    host.wait_for("first", "last")
    assert host.replies["last"]["success"]


def test_calls_that_are_over_do_not_fill_the_queue_without_bound(gate):
    """A worker whose threads are busy refuses calls when too many that are over wait for a thread."""
    host = Host(gate, threads=1, queue=10)
    host.send("first", "wait")
    host.wait_until_running(1)
    codes = []
    for number in range(40):
        host.send(number, "ask", timeout_ms=0)
        codes.append(host.dispatcher.threads.unfinished)
    assert max(codes) < 20  # the ten of the queue, and some that are just passing
    gate.set()
    wait_until(lambda: host.dispatcher.threads.unfinished == 0)
    assert host.call("ask")["success"]
