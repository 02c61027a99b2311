"""Arguments that a command does not know are errors, in every format and at every level."""

from __future__ import annotations

import msgspec
import pytest

from bridge import Adapter, Dispatcher, Unchecked
from bridge.adapters import dspy, echo
from bridge.wire.codec import ETF, FORMATS

SIGNATURE = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
TOOL = {"name": "look_up"}


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    color: str = ""


class Args(msgspec.Struct, rename="camel"):
    first_name: str = ""
    inner: Inner | None = None
    many: dict[str, list[Inner]] = {}


@pytest.fixture
def words():
    adapter = Adapter("words")
    adapter.command("count", Args)(lambda args, context: {"first": args.first_name})
    adapter.command("nothing")(lambda args, context: {})
    adapter.command("anything", Unchecked)(lambda args, context: {"args": args})
    return adapter


@pytest.fixture(params=FORMATS, ids=lambda format: format.name)
def call(request, words):
    """Return a function call(command, args, **envelope) that calls commands of dspy, echo, words and the worker."""
    format = request.param
    dispatcher = Dispatcher(dspy.adapter)
    for adapter in (echo.adapter, words):
        dispatcher.add(adapter)

    def call(command, args, **envelope):
        message = {"id": 1, "command": command, "args": args, **envelope}
        return format.decode(dispatcher.call(format.encode(message), 60))

    return call


UNKNOWN = [
    # command, args, path of the first, its unknown names, what the message has to say
    ("sleep", {"second": 1}, "args.second", ["second"], "second (did you mean seconds?)"),
    ("count", {"first_name": "x"}, "args.first_name", ["first_name"], "known: firstName, inner,"),
    ("count", {"inner": {"colour": "red"}}, "args.inner.colour", ["colour"], "known: color"),
    (
        "count",
        {"many": {"a": [{}, {"x": 1}]}},
        "args.many.a[1].x",
        ["x"],
        "args.many.a[1]: unknown",
    ),
    ("nothing", {"x": 1, "y": 2}, "args.x", ["x", "y"], "unknown: x, y; known: session_id"),
    ("describe", {"commands": []}, "args.commands", ["commands"], "known: session_id"),
    ("cancel", {"id": 5, "all": True}, "args.all", ["all"], "known: id"),
    ("pause", {"id": 5, "all": True}, "args.all", ["all"], "known: id"),
    ("hello", {"offer": {}}, "args.offer", ["offer"], "offer (did you mean offers?)"),
    ("get_stats", {"includes": []}, "args.includes", ["includes"], "include"),
    ("set_log_level", {"level": "INFO", "log": 1}, "args.log", ["log"], "logger"),
    ("shutdown", {"now": True}, "args.now", ["now"], "known: session_id"),
    ("cleanup", {"session": "s"}, "args.session", ["session"], "session_id"),
    ("reset_state", {"hard": True}, "args.hard", ["hard"], "session_id"),
    ("list_sessions", {"max": 1}, "args.max", ["max"], "limit"),
    ("get_session", {"id": "s"}, "args.id", ["id"], "session_id"),
    ("create_session", {"ttl": 5}, "args.ttl", ["ttl"], "ttl (did you mean ttl_s?)"),
    (
        "create_session",
        {"session_id": "s", "quota": {"program": 1}},
        "args.quota.program",
        ["program"],
        "program (did you mean programs?); known: bytes, programs",
    ),
    ("cleanup_session", {"session_id": "s", "x": 1}, "args.x", ["x"], "session_id"),
    ("get_session_data", {"keys": ["a"]}, "args.keys", ["keys"], "key"),
    ("update_session_data", {"key": "a", "val": 1}, "args.val", ["val"], "value"),
    (
        "configure_lm",
        {"provider": "offline", "apikey": "k", "topp": 1, "adapters": "json"},
        "args.apikey",
        ["apikey", "topp", "adapters"],
        "apikey (did you mean api_key?), topp (did you mean top_p?), adapters",
    ),
    (
        "create_program",
        {"id": "p", "signature": SIGNATURE, "program_typ": "react"},
        "args.program_typ",
        ["program_typ"],
        "program_typ (did you mean program_type?)",
    ),
    (
        "create_program",
        {"signature": {**SIGNATURE, "instructions": "Be brief."}},
        "args.signature.instructions",
        ["instructions"],
        "known: description, inputs, name, outputs",
    ),
    (
        "create_program",
        {"signature": {"inputs": [], "outputs": [{"name": "a", "kind": "text"}]}},
        "args.signature.outputs[0].kind",
        ["kind"],
        "known: constraints, default, description, json_schema, name, prefix, type",
    ),
    (
        "create_program",
        {"signature": {"inputs": {}, "outputs": {"a": {"types": "int"}}}},
        "args.signature.outputs.a.types",
        ["types"],
        "types (did you mean type?)",
    ),
    ("create_gemini_program", {"modle": "x"}, "args.modle", ["modle"], "(did you mean model?)"),
    (
        "execute_program",
        {"program_id": "p", "options": {"m": 2, "temprature": 1}},
        "args.options.m",
        ["m", "temprature"],
        "temprature (did you mean temperature?); known: frequency_penalty, max_tokens",
    ),
    (
        "execute_program",
        {"program_id": "p", "program_data": {"signature_def": {**SIGNATURE, "x": 1}}},
        "args.program_data.signature_def.x",
        ["x"],
        "args.program_data.signature_def: unknown",
    ),
    ("list_sessions", {"": 1}, "args.", [""], "args: unknown: ''; known: limit"),
    ("execute_program", {"program": "p"}, "args.program", ["program"], "program_id"),
    ("execute_gemini_program", {"input": {}}, "args.input", ["input"], "inputs"),
    ("list_programs", {"limits": 5}, "args.limits", ["limits"], "limit"),
    ("get_program_info", {"id": "p"}, "args.id", ["id"], "program_id"),
    ("delete_program", {"programid": "p"}, "args.programid", ["programid"], "program_id"),
    ("register_tools", {"tool": []}, "args.tool", ["tool"], "tool (did you mean tools?)"),
    (
        "register_tools",
        {"tools": [TOOL, {**TOOL, "arguments": {}}]},
        "args.tools[1].arguments",
        ["arguments"],
        "args.tools[1]: unknown: arguments",
    ),
]


@pytest.mark.parametrize(("command", "args", "path", "unknown", "text"), UNKNOWN)
def test_unknown_arguments_are_refused(call, command, args, path, unknown, text):
    """The error names all of them, lists the known ones, and suggests a similar name."""
    reply = call(command, args)
    assert (reply["success"], reply.get("code")) == (False, "invalid_args"), reply
    assert reply["details"]["path"] == path
    assert reply["details"]["unknown"] == unknown
    assert text in reply["error"]


def test_every_command_refuses_unknown_arguments(call):
    """Exceptions are ping, and commands whose args may be anything."""
    anything = {"ping", "echo", "echo_decoded", "anything"}
    for command in call("describe", {})["result"]["commands"].keys() - anything:
        reply = call(command, {"zzz": 1})
        assert reply.get("code") == "invalid_args", (command, reply)
        assert reply["details"].get("unknown") == ["zzz"], (command, reply)
    for command in anything:
        assert call(command, {"zzz": 1})["success"]


# What existing hosts send beyond the known arguments: it has no effect.
IGNORED = {
    "shutdown": {"worker_id"},
    "create_program": {"modules", "pool_name"},
    "create_gemini_program": {"modules", "pool_name"},
    "RunOptions": {"pool_name", "pool_timeout", "session_id", "timeout"},
    "ToolDefinition": {"_meta", "annotations", "execution", "icons", "outputSchema", "title"},
}


def test_ignored_arguments(call):
    """They are those that `describe` marks, and a command accepts them."""
    found = {}
    for command, described in call("describe", {})["result"]["commands"].items():
        definitions = described["args"].get("$defs", {})
        for name, schema in definitions.items():
            of = command if described["args"].get("$ref") == f"#/$defs/{name}" else name
            ignored = {key for key, entry in schema["properties"].items() if entry.get("description") == "Ignored."}
            if ignored:
                found[of] = ignored
    assert found == IGNORED
    tool = {**TOOL, "description": None, **{key: {} for key in IGNORED["ToolDefinition"]}}
    create = {"id": "p", "signature": {**SIGNATURE, "module": "My.QA", "metadata": {"v": 1}}}
    options = {"temperature": 0.5, **dict.fromkeys(IGNORED["RunOptions"], "x")}
    run = {"program_id": "p", "inputs": {"q": "?"}, "options": options}
    for command, args in (
        ("configure_lm", {"provider": "offline", "type": "offline"}),
        ("register_tools", {"tools": [tool]}),
        ("create_program", {**create, "modules": [], "pool_name": "pool"}),
        ("execute_program", run),
        ("shutdown", {"worker_id": "w1"}),
    ):
        reply = call(command, args)
        assert reply["success"], reply


def test_refused_args_end_no_session(call):
    """Sessions that the command would have ended still exist."""
    call("update_session_data", {"key": "k", "value": 1}, session_id="s")
    for command, args in (
        ("cleanup", {"session": "s"}),
        ("reset_state", {"sesion_id": "s"}),
        ("cleanup_session", {"session_id": "s", "force": True}),
    ):
        assert call(command, args)["code"] == "invalid_args"
        assert call("get_session_data", {}, session_id="s")["result"]["data"] == {"k": 1}


def test_a_session_may_be_named_in_the_args_of_every_command(call):
    """A pool adds it to each request. The envelope may have any keys, too."""
    for command, args in (
        ("ping", {}),
        ("nothing", {}),
        ("count", {"firstName": "Ann"}),
        ("describe", {}),
        ("cancel", {"id": 5}),
        ("get_stats", {}),
        ("configure_lm", {"provider": "offline"}),
        ("list_programs", {}),
        ("cleanup", {}),
        ("shutdown", {"worker_id": "w"}),
    ):
        reply = call(command, {**args, "session_id": "s"}, timestamp="2026-01-01", more=[1])
        assert reply["success"], reply


def test_long_and_odd_names_are_shortened(call):
    """The number of names in an error, and their length, are limited."""
    reply = call("nothing", {"k" * 5000: 1, **{f"x{index}": 1 for index in range(500)}})
    assert len(reply["error"]) < 1000
    assert len(reply["details"]["unknown"]) == 20
    assert reply["details"]["unknown"][0] == "k" * 100 + "…"


@pytest.mark.parametrize("key", [1, None, (1, 2), b"\xff"])
def test_keys_that_are_not_text_are_errors_of_their_map(key):
    """ETF has such keys."""
    dispatcher = Dispatcher(dspy.adapter)
    args = {"program_id": "p", "inputs": {"q": "x", key: 1}}
    request = {"id": 1, "command": "execute_program", "args": args}
    reply = ETF.decode(dispatcher.call(ETF.encode(request), 60))
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.inputs")
    assert "a key: Expected `str`" in reply["error"]
