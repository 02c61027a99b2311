"""The requests of the original DSPex client's public functions, defaults included, as JSON."""

from __future__ import annotations

import msgspec
import pytest

from bridge.wire import _etf

SIGNATURE = {
    "name": "QuestionAnswer",
    "inputs": [{"name": "question", "type": "string"}],
    "outputs": [{"name": "answer", "type": "string"}],
}
ANSWER = {"question": "What is the capital of France?"}
# DSPex.set_lm/2 sends a Gemini model; `offline` stands in for it where a program is run.
SET_LM = {"model": "gemini-1.5-flash", "provider": "google", "api_key": "k-1234567890abcdef-xyz"}
OFFLINE = {"model": "reader", "provider": "offline", "api_key": "k-1234567890abcdef-xyz"}


class Host:
    """Sends requests as the original does: an integer id, the args, a timestamp."""

    def __init__(self, peer):
        self.peer = peer
        self.id = 0

    def call(self, command, args):
        self.id += 1
        stamp = "2026-01-01T00:00:00.000000Z"
        request = {"id": self.id, "command": command, "args": args, "timestamp": stamp}
        reply = self.peer.ask(request)
        assert reply["id"] == self.id
        return reply

    def result(self, command, args):
        reply = self.call(command, args)
        assert reply["success"], reply
        assert isinstance(reply["result"], dict)
        return reply["result"]


def stored_program(created):
    """Return what the session pool stores of a create's result and sends with each execute."""
    return {
        "program_id": created["program_id"],
        "signature_def": created.get("signature_def", created["signature"]),
        "signature_class": created.get("signature_class"),
        "field_mapping": created.get("field_mapping", {}),
        "fallback_used": created.get("fallback_used", False),
        "created_at": 1750000000,
        "execution_count": 0,
        "last_executed": None,
        "program_type": created["program_type"],
        "signature": created["signature"],
    }


def test_the_single_port(start_peer):
    """DSPex with the adapter PythonPort: one worker, no sessions."""
    host = Host(start_peer(adapter="dspy"))
    assert host.result("ping", {})["status"] == "ok"
    configured = host.result("configure_lm", {**SET_LM, "temperature": 0.7})
    assert configured["status"] == "configured"
    host.result("configure_lm", {**OFFLINE, "temperature": 0.7})
    program_id = host.result("create_program", {"signature": SIGNATURE})["program_id"]
    # execute_program(id, inputs) passes its default options on, an empty keyword list.
    run = {"program_id": program_id, "inputs": ANSWER, "options": []}
    assert host.result("execute_program", run)["outputs"].keys() == {"answer"}
    run = {"program_id": program_id, "inputs": ANSWER}
    assert host.result("execute_program", run)["outputs"].keys() == {"answer"}
    (listed,) = host.result("list_programs", {})["programs"]
    assert listed["id"] == program_id
    assert host.result("get_program_info", {"program_id": program_id})["execution_count"] == 2
    assert host.result("get_stats", {})["programs_count"] == 1
    host.result("delete_program", {"program_id": program_id})
    assert host.result("cleanup", {}) == {"status": "cleaned", "programs_removed": 0}
    host.result("reset_state", {})


def test_the_session_pool(start_peer):
    """DSPex with the adapter PythonPoolV2: every request names a session."""
    first = Host(start_peer("--mode", "pool-worker", "--worker-id", "worker_1", adapter="dspy"))
    second = Host(start_peer("--mode", "pool-worker", "--worker-id", "worker_2", adapter="dspy"))
    for host in (first, second):
        host.result("ping", {"initialization": True, "worker_id": "worker_1"})
        # execute_anonymous names the session "anonymous": meant is every session.
        host.result("configure_lm", {**OFFLINE, "temperature": 0.7, "session_id": "anonymous"})
    for session_id in ("anonymous", "user_7"):
        args = {"id": "pool_1_1", "signature": SIGNATURE, "session_id": session_id}
        created = first.result("create_program", args)
        run = {
            "program_id": "pool_1_1",
            "inputs": ANSWER,
            "options": {},
            "session_id": session_id,
            "program_data": stored_program(created),
        }
        for host in (first, second):  # the second has never seen the program
            assert host.result("execute_program", run)["outputs"].keys() == {"answer"}
            # as DSPex.execute_program/2 would have it
            host.result("execute_program", {**run, "options": []})
        named = {"session_id": session_id}
        assert first.result("list_programs", named)["total_count"] == 1
        first.result("get_program_info", {"program_id": "pool_1_1", **named})
        first.result("get_stats", named)
        assert first.result("ping", {"health_check": True, **named})["mode"] == "pool-worker"
        first.result("delete_program", {"program_id": "pool_1_1", **named})
        first.result("cleanup_session", named)
    # with_pool_name/1 and session_adapter/2 leave the pool's name among the options.
    options = {"pool_name": "Elixir.MyApp.Pool"}
    created = first.result("create_program", {"id": "p", "signature": SIGNATURE, **options})
    first.result("execute_program", {"program_id": "p", "inputs": ANSWER, "options": options})
    stopped = first.result("shutdown", {"worker_id": "worker_1"})
    assert stopped["status"] == "shutting_down"


def test_gemini_programs(start_peer):
    """Both commands return the model's name; `model` may be left out."""
    host = Host(start_peer(adapter="dspy"))
    created = host.result("create_gemini_program", {"id": "a", "signature": SIGNATURE})
    assert created == {
        "program_id": "a",
        "status": "created",
        "signature": SIGNATURE,
        "program_type": "predict",
        "type": "gemini",
        "model_name": None,
    }
    args = {"id": "b", "signature": SIGNATURE, "model": "gemini-1.5-pro"}
    assert host.result("create_gemini_program", args)["model_name"] == "gemini-1.5-pro"
    host.result("configure_lm", OFFLINE)
    created = host.result("create_gemini_program", {"id": "c", "signature": SIGNATURE})
    assert created["model_name"] == "reader"
    run = {"program_id": "c", "inputs": ANSWER, "options": []}
    assert host.result("execute_gemini_program", run)["outputs"].keys() == {"answer"}


@pytest.mark.parametrize("name", ["GEMINI_API_KEY", "GOOGLE_API_KEY"])
def test_whether_a_gemini_key_is_there(start_peer, monkeypatch, name):
    for key in ("GEMINI_API_KEY", "GOOGLE_API_KEY"):
        monkeypatch.delenv(key, raising=False)
    for value, expected in (("k-1234567890abcdef-xyz", True), (" ", False)):
        monkeypatch.setenv(name, value)
        host = Host(start_peer(adapter="dspy"))
        assert host.result("ping", {})["gemini_available"] is expected
        assert host.result("get_stats", {})["gemini_available"] is expected


ENCODERS = {
    "json": (msgspec.json.encode, msgspec.json.decode),
    "msgpack": (msgspec.msgpack.encode, msgspec.msgpack.decode),
    "etf": (_etf.encode, _etf.decode),
}


@pytest.mark.parametrize("format", ENCODERS)
def test_an_empty_list_is_an_empty_map(start_peer, format):
    """Wherever a map is expected, in every format; a list with elements is an error."""
    encode, decode = ENCODERS[format]
    peer = start_peer(adapter="dspy")

    def ask(command, args):
        peer.send_frame(encode({"id": 1, "command": command, "args": args}))
        return decode(peer.receive_frame())

    assert ask("ping", [])["success"]
    assert ask("configure_lm", {"provider": "offline"})["success"]
    assert ask("list_programs", [])["success"]
    no_inputs = {"inputs": [], "outputs": [{"name": "a"}]}
    assert ask("create_program", {"id": "p", "signature": no_inputs})["success"]
    empty = {"program_id": "p", "inputs": [], "options": [], "program_data": []}
    assert ask("execute_program", empty)["success"]
    data = {"signature": [], "signature_def": [], "field_mapping": []}
    assert ask("execute_program", {**empty, "program_data": data})["success"]
    assert ask("hello", {"offers": []})["success"]
    merged = {"session_id": "s", "operation": "merge", "value": []}
    for more in ({}, {"key": "k"}, {"key": "k", "value": {"a": 1}}, {"key": "k"}):
        assert ask("update_session_data", {**merged, **more})["success"]
    data = ask("get_session_data", {"session_id": "s"})["result"]["data"]
    assert data == {"k": {"a": 1}}
    for args in (
        [],
        {"x": []},
        {"type": "object", "properties": []},
        {"type": "object", "properties": {"x": []}, "$defs": []},
        {"x": {"type": "array", "items": []}, "y": {"anyOf": [[], {"properties": {"z": []}}]}},
    ):
        assert ask("register_tools", {"tools": [{"name": "t", "args": args}]})["success"], args
    for args in ({"x": [1]}, {"type": "object", "properties": [1]}):
        reply = ask("register_tools", {"tools": [{"name": "t", "args": args}]})
        assert reply["code"] == "invalid_args", args
    for name in ("inputs", "options", "program_data"):
        reply = ask("execute_program", {**empty, name: ["x"]})
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", f"args.{name}")
    reply = ask("execute_program", ["x"])
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args")


@pytest.mark.parametrize(
    ("type", "value", "shown"),
    [
        ("dict", [], "{}"),
        ("optional<dict<string, integer>>", [], "{}"),
        ("dict<string, dict>", {"k": []}, '{"k": {}}'),
        ("list<dict>", [[]], "[{}]"),
        ("dict|string", [], "{}"),
        ("dict|list<integer>", [], "[]"),
        ("any", [], "[]"),
        ("dict", ["x"], None),
    ],
)
def test_an_empty_list_among_the_inputs(start_peer, type, value, shown):
    peer = start_peer(adapter="dspy")
    signature = {"inputs": [{"name": "q", "type": type}], "outputs": [{"name": "a"}]}
    peer.call("create_program", {"id": "p", "signature": signature})
    answers = {f"[[ ## q ## ]]\n{shown}\n": {"a": "seen"}}
    peer.call("configure_lm", {"provider": "scripted", "answers": answers})
    reply = peer.call("execute_program", {"program_id": "p", "inputs": {"q": value}})
    if shown is None:
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.inputs.q")
    else:
        assert reply["result"]["outputs"] == {"a": "seen"}


@pytest.mark.parametrize(
    ("signature", "path"),
    [
        ({"inputs": [{"name": "q"}], "outputs": []}, "args.signature.outputs"),
        ({"inputs": [{"name": "q"}]}, "args.signature.outputs"),
        ([], "args.signature.inputs"),
        ({"inputs": [{"type": "string"}], "outputs": []}, "args.signature.inputs[0].name"),
        ({"inputs": [{"name": " "}], "outputs": []}, "args.signature.inputs[0]"),
        ({"inputs": {"": {}}, "outputs": []}, "args.signature.inputs."),
    ],
)
def test_a_signature_that_the_original_replaced(start_peer, signature, path):
    """It is an error, whose path is the one in its text."""
    host = Host(start_peer(adapter="dspy"))
    reply = host.call("create_program", {"id": "p", "signature": signature})
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert reply["error"].startswith(f"{path}: ")
