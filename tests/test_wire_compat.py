"""The requests of existing hosts, byte for byte, to a real worker."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import msgspec
import pytest

from bridge.wire import _etf
from peer import wait_until

TIMESTAMP = "2026-01-01T00:00:00.000000Z"
SEED_SIGNATURE = {
    "inputs": {"question": {"description": "what is asked", "type": "string"}},
    "outputs": {"answer": {"description": "in short", "type": "string"}},
}


def ask(peer, request_id, command, args=None):
    reply = peer.ask({"id": request_id, "command": command, "args": args or {}, "timestamp": TIMESTAMP})
    assert list(reply)[:2] == ["id", "success"]
    assert {"id", "success", "timestamp"} <= set(reply)
    assert reply["id"] == request_id
    assert reply["success"], reply
    assert isinstance(reply["result"], dict)
    return reply["result"]


def test_a_single_host(start_peer):
    """Ping at once, every form of each command, cleanup, and the end of the pipe."""
    peer = start_peer("--mode", "standalone", "--worker-id", "w1", adapter="dspy")
    pong = ask(peer, 1, "ping")
    assert pong.keys() == {
        *("status", "timestamp", "dspy_available", "gemini_available"),
        *("uptime", "mode", "worker_id"),
    }
    assert (pong["status"], pong["mode"], pong["worker_id"]) == ("ok", "standalone", "w1")
    assert ask(peer, 2, "ping", {"health_check": True})["dspy_available"] is True
    lm = {"type": "offline", "model": "reader", "api_key": "secret-key-123"}
    assert ask(peer, 3, "configure_lm", lm)["status"] == "configured"
    created = ask(peer, 4, "create_program", {"signature": SEED_SIGNATURE})
    program_id = created["program_id"]
    assert created["signature"] == SEED_SIGNATURE
    run = {"program_id": program_id, "inputs": {"question": "Who?"}, "options": {}}
    assert ask(peer, 5, "execute_program", run).keys() >= {*("program_id", "outputs", "execution_time")}
    (program,) = ask(peer, 6, "list_programs")["programs"]
    assert program.keys() >= {*("id", "program_id", "created_at", "execution_count", "last_executed", "signature")}
    ask(peer, 7, "get_program_info", {"program_id": program_id})
    gemini = {"id": "g", "signature": SEED_SIGNATURE, "model": "offline/reader"}
    ask(peer, 8, "create_gemini_program", gemini)
    run = {"program_id": "g", "inputs": {"question": "Who?"}}
    assert ask(peer, 9, "execute_gemini_program", run)["model"] == "offline/reader"
    stats = ask(peer, 10, "get_stats")
    assert stats.keys() >= {
        *("programs_count", "command_count", "error_count", "uptime"),
        *("memory_usage", "dspy_available", "gemini_available"),
    }
    assert stats["memory_usage"].keys() == {"rss", "vms", "percent"}
    assert (stats["programs_count"], stats["error_count"]) == (2, 0)
    ask(peer, 11, "update_session_data", {"session_id": "s", "key": "k", "value": 1})
    assert ask(peer, 12, "get_session_data", {"session_id": "s"})["data"] == {"k": 1}
    assert ask(peer, 13, "delete_program", {"program_id": "g"})["status"] == "deleted"
    assert ask(peer, 14, "cleanup_session", {"session_id": "s"})["status"] == "cleaned"
    assert ask(peer, 15, "cleanup") == {"status": "cleaned", "programs_removed": 1}
    assert ask(peer, 16, "reset_state").keys() == {*("status", "programs_cleared", "commands_reset", "errors_reset")}
    peer.close_input()
    assert peer.wait() == 0
    assert "secret-key-123" not in peer.stderr()


def test_a_pool_host(start_peer):
    """Ping with id 0, named and anonymous sessions, and a shutdown that is answered."""
    peer = start_peer("--mode", "pool-worker", "--worker-id", "worker_7", adapter="dspy")
    pong = ask(peer, 0, "ping", {"initialization": True, "worker_id": "worker_7"})
    assert (pong["mode"], pong["worker_id"]) == ("pool-worker", "worker_7")
    ask(peer, 1, "configure_lm", {"provider": "offline"})
    ask(peer, 2, "create_program", {"id": "p", "signature": SEED_SIGNATURE})
    listed = ask(peer, 3, "list_programs", {"session_id": "anonymous"})
    assert listed["total_count"] == 1
    data = {"program_id": "q", "signature_def": {}, "signature": SEED_SIGNATURE}
    run = {"program_id": "q", "inputs": {"question": "?"}, "session_id": "u1", "program_data": data}
    assert ask(peer, 4, "execute_program", run)["program_id"] == "q"
    stopped = ask(peer, 5, "shutdown", {"worker_id": "worker_7"})
    assert stopped == {
        "status": "shutting_down",
        "worker_id": "worker_7",
        "mode": "pool-worker",
        "sessions_cleaned": 2,
    }
    assert peer.wait() == 0
    assert peer.stderr() == ""


@pytest.mark.parametrize("flags", [(), ("--protocol", "msgpack", "--quiet")])
def test_a_messagepack_host(start_peer, flags):
    """Negotiation in JSON, then MessagePack; replies never begin with 0x83."""
    peer = start_peer(*flags)
    offer = {"type": "protocol_negotiation", "supported": ["msgpack", "json"]}
    selected = peer.ask({**offer, "preferred": "msgpack", "timestamp": TIMESTAMP})
    assert (selected["type"], selected["protocol"]) == ("protocol_selected", "msgpack")
    for command in ("ping", "nope"):
        peer.send_frame(msgspec.msgpack.encode({"id": 1, "command": command, "args": {}}))
        frame = peer.receive_frame()
        assert 0x80 <= frame[0] <= 0x8F
        assert frame[0] != 0x83
        assert msgspec.msgpack.decode(frame)["id"] == 1
    assert peer.is_alive()  # in JSON: the format is that of each frame


def test_an_etf_host(start_peer):
    """Negotiation in JSON, then ETF; the worker still answers the other formats."""
    peer = start_peer("--protocol", "etf")
    offer = {"type": "protocol_negotiation", "supported": ["json"], "timestamp": TIMESTAMP}
    assert peer.ask(offer)["protocol"] == "etf"
    for command in ("ping", "nope"):
        peer.send_frame(_etf.encode({"id": 1, "command": command, "args": {}}))
        frame = peer.receive_frame()
        assert frame[:2] == b"\x83t"
        assert _etf.decode(frame)["id"] == 1
    peer.send_frame(msgspec.msgpack.encode({"id": 1, "command": "ping", "args": {}}))
    assert msgspec.msgpack.decode(peer.receive_frame())["success"]
    assert peer.is_alive()


def test_create_then_execute_without_waiting(start_peer):
    """Existing hosts rely on the order."""
    peer = start_peer(adapter="dspy")
    run = {"program_id": "p", "inputs": {"question": "?"}}
    for request_id, (command, args) in enumerate(
        [
            ("configure_lm", {"provider": "offline"}),
            ("create_program", {"id": "p", "signature": SEED_SIGNATURE}),
            ("execute_program", run),
            ("delete_program", {"program_id": "p"}),
            ("execute_program", run),
            ("ping", {}),
        ]
    ):
        peer.send({"id": request_id, "command": command, "args": args})
    replies = {reply["id"]: reply for reply in (peer.receive() for _ in range(6))}
    assert [replies[i]["success"] for i in range(6)] == [True, True, True, True, False, True]
    assert replies[4]["error"] == "Program not found: p"


def test_dspy_is_imported_after_the_first_reply(start_peer):
    """Its compiled libraries are loaded although no program was created."""
    peer = start_peer(adapter="dspy")
    assert peer.is_alive()

    def loaded():
        with open(f"/proc/{peer.process.pid}/maps") as maps:
            return "pydantic_core" in maps.read()

    wait_until(loaded)


def test_other_descriptors_than_stdio():
    """With --fds, stdin and stdout are not used."""
    worker_in, host_out = os.pipe()
    host_in, worker_out = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "bridge", "worker", "--adapter", "echo"),
            *("--fds", f"{worker_in},{worker_out}"),
        ],
        pass_fds=(worker_in, worker_out),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    os.close(worker_in)
    os.close(worker_out)
    ping = json.dumps({"id": 1, "command": "ping"}).encode()
    os.write(host_out, struct.pack(">I", len(ping)) + ping)
    (size,) = struct.unpack(">I", os.read(host_in, 4))
    assert json.loads(os.read(host_in, size))["success"]
    os.close(host_out)
    assert process.wait(10) == 0
    assert process.stdout.read() == b""
    process.stdout.close()
    os.close(host_in)
