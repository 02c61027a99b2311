"""Workers that use more memory or CPU time than they may, or never answer: each costs itself only."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from pathlib import Path

import pytest

from bridge import Client, Options, embed, errors
from bridge.worker import limits
from peer import is_running, wait_until

MIB = 1 << 20
LIMIT = 96 * MIB


@pytest.fixture
def start_greedy(start_peer):
    return lambda *flags, **options: start_peer(*flags, adapter="greedy:adapter", **options)


def test_a_call_that_needs_too_much_memory_fails_alone(start_greedy):
    """The worker answers others before and after, and has the memory again once it is free."""
    peer = start_greedy("--max-memory", str(LIMIT))
    failed = peer.call("eat", {"size": MIB, "times": 1000})
    assert (failed["code"], failed["details"]) == ("handler_error", {"type": "MemoryError"})
    assert peer.is_alive()
    assert peer.call("eat", {"size": LIMIT})["code"] == "handler_error"
    assert peer.call("forget")["success"]
    assert peer.call("eat", {"size": 16 * MIB})["result"] == {"eaten": 16 * MIB}


def test_a_frame_for_which_there_is_no_memory_is_overloaded(start_greedy):
    """The host may send it again, to another worker."""
    peer = start_greedy("--max-memory", str(LIMIT), "--max-frame", str(2 * LIMIT))
    peer.send_frame(json.dumps({"id": 7, "command": "eat", "args": {"size": "x" * LIMIT}}).encode())
    reply = peer.receive()
    assert (reply["id"], reply["code"], reply["recovery"]) == (7, "overloaded", "backoff_retry")
    assert reply["details"]["retry_after"] > 0
    assert peer.is_alive()


def test_a_worker_without_any_memory_answers_or_ends_with_a_reason(start_greedy):
    """The limit neither keeps it from answering that, nor from logging why it ends."""
    peer = start_greedy("--max-memory", str(LIMIT))
    for size in (MIB, 1 << 10, 10):
        assert peer.call("eat", {"size": size, "times": 1 << 30})["code"] in ("handler_error", "overloaded")
    with contextlib.suppress(BrokenPipeError):
        peer.send({"id": 1, "command": "eat", "args": {}, "padding": "x" * MIB})
    frame = peer.receive_frame()
    if frame is None:
        assert peer.wait() == 70
        assert '"message":"the worker failed"' in peer.stderr()
    else:
        assert json.loads(frame)["code"] in ("handler_error", "overloaded")


def test_stacks_of_threads_do_not_count(start_peer):
    """Four times the limit is reserved for them, and hardly any of it is used."""
    peer = start_peer("--max-memory", str(64 * MIB), "--threads", "32", adapter="hostile:adapter")
    peer.call("hello", {"offers": {"tools": True}})
    for number in range(32):
        peer.send({"id": number, "command": "use_tool", "args": {"name": "each waits in a thread"}})
    questions = [peer.receive() for _ in range(32)]
    assert {question["command"] for question in questions} == {"call_tool"}
    for question in questions:
        peer.send({"id": question["id"], "success": True, "result": 1})
    assert [peer.receive()["success"] for _ in range(32)] == [True] * 32


def test_children_have_the_limits_too_and_the_companion_has_none(start_greedy):
    """Each process has them for itself; the companion has to forward stderr for as long as the worker runs."""
    peer = start_greedy("--max-memory", str(LIMIT), "--max-cpu", "300")
    own = peer.call("limits")["result"]
    assert own["cpu"] == [300, 302]
    assert LIMIT <= own["memory"][0] <= LIMIT + 8 * MIB
    assert peer.call("child_limits")["result"]["cpu"] == 300
    assert peer.call("child_limits")["result"]["memory"] >= LIMIT
    (companion,) = [
        pid for pid in children(peer.process.pid) if Path(f"/proc/{pid}/comm").read_text() == "bridge-beside\n"
    ]
    text = Path(f"/proc/{companion}/limits").read_text()
    assert [line.split()[3] for line in text.splitlines() if line.startswith("Max cpu time")] == ["unlimited"]
    assert [line.split()[3] for line in text.splitlines() if line.startswith("Max data size")] == ["unlimited"]


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_has_used_its_cpu_time_says_so(start_greedy):
    """While it holds the GIL: the stacks, then one line in words."""
    peer = start_greedy("--max-cpu", "1")
    peer.send({"id": 1, "command": "burn"})
    assert peer.wait() == -signal.SIGXCPU
    *stacks, last = peer.stderr().splitlines()
    assert last == "dspex-bridge worker: error: it has used its CPU time (--max-cpu 1) and ends"
    assert any("in burn" in line for line in stacks)


def test_a_client_learns_that_the_cpu_time_was_used(support):
    """The error names the flag, and quotes what the worker wrote."""
    client = Client.start(adapter="greedy:adapter", flags=["--max-cpu", "1"], env={"PYTHONPATH": support})
    with client, pytest.raises(errors.WorkerCrashed, match=r"SIGXCPU.*--max-cpu") as raised:
        client.call("burn")
    assert raised.value.details["exit_status"] == -signal.SIGXCPU
    assert "--max-cpu 1" in raised.value.details["stderr"]


WAYS = {
    "eats memory": ("greedy:adapter", ["--max-memory", str(LIMIT)], "eat", {"size": 10, "times": 1 << 40}),
    "burns the CPU": ("greedy:adapter", ["--max-cpu", "1"], "burn", {}),
    "floods stderr": ("processes:adapter", [], "shout_on_thread", {"way": "write", "size": 20_000}),
    "never answers": ("hostile:adapter", [], "sleep", {"seconds": 600}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_worker_costs_itself_only(start_peer, way):
    """Another worker of the same host goes on, and the bad one ends with its input."""
    adapter, flags, command, args = WAYS[way]
    good = start_peer()
    bad = start_peer(*flags, "--grace", "0.1", adapter=adapter)
    bad.send({"id": 1, "command": command, "args": args})
    for number in range(200):
        assert good.call("echo", {"number": number})["result"] == {"number": number}
    bad.close_input()
    wait_until(lambda: not is_running(bad.process.pid))
    assert good.is_alive()


def test_a_worker_that_cannot_be_limited_does_not_start(start_greedy):
    """One line has the reason; the status is that of wrong usage."""
    peer = start_greedy("--max-memory", str(32 * MIB))
    assert peer.wait() == 2
    (line,) = peer.stderr().splitlines()
    assert line.startswith("dspex-bridge worker: error: --max-memory 33554432: a worker has ")


@pytest.mark.parametrize(("option", "value"), [("max_memory", LIMIT), ("max_cpu", 5)])
def test_a_system_without_these_limits(monkeypatch, option, value):
    """It is an error that names the flag, instead of a worker without limits."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(limits.LimitFailed, match=f"--{option.replace('_', '-')}: this system cannot limit"):
        limits.apply(Options(**{option: value}))


@pytest.mark.parametrize("option", ["max_memory", "max_cpu"])
def test_the_process_of_an_embedding_host_is_not_limited(option):
    """A library must not limit the program that uses it."""
    with pytest.raises(ValueError, match="max_memory and max_cpu limit a process, and this one is the host's"):
        embed.open(json.dumps({"adapter": "echo", option: 1 << 30 if option == "max_memory" else 60}).encode(), False)


def test_a_lower_limit_of_the_environment_stays(start_peer):
    """A worker never has more than its parent allows."""
    command = f"ulimit -t 100; exec {sys.executable} -P -m bridge worker --adapter greedy:adapter --max-cpu 1000"
    peer = start_peer(command=["sh", "-c", command])
    assert peer.call("limits")["result"]["cpu"] == [100, 100]
