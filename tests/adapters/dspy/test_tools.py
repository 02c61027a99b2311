"""Tools of the host: their declarations, their form in prompts, and the calls that reach the host."""

from __future__ import annotations

import json
import re
import threading

import msgspec
import pytest

from bridge import Dispatcher
from bridge._framing import Frame, Outbox
from bridge.adapters.dspy import adapter
from bridge.wire.codec import ETF, JSON, MSGPACK

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
CITY = {"city": {"type": "string"}}
ALL = {"type": "object", "properties": CITY, "required": ["city"]}


class Host:
    """A dispatcher's host that answers `call_tool` with what `tool(name, args)` returns."""

    def __init__(self, format=JSON):
        self.format = format
        self.dispatcher = Dispatcher(adapter)
        self.called = []
        self.tool = lambda name, args: "fine"
        self.reply("hello", offers={"tools": True})

    def reply(self, command, **args):
        request = self.format.encode({"id": 1, "command": command, "args": args})
        frames = []
        outbox = Outbox()
        done = threading.Event()

        def deliver(late):
            message = self.format.decode(late.payload())
            if message.get("command") == "call_tool":
                self.answer(message)
            elif "success" in message:
                frames.append(message)
                done.set()

        self.dispatcher.path.answer(Frame.of(request), outbox, deliver)
        if len(outbox):
            return self.format.decode(outbox.payload())
        assert done.wait(60)
        return frames[0]

    def answer(self, message):
        call = message["args"]
        self.called.append((call["name"], call["args"]))
        result = self.tool(call["name"], call["args"])
        answer = {"id": message["id"], "success": True, "result": result}
        self.dispatcher.path.answer(Frame.of(self.format.encode(answer)), Outbox(), None)

    def ask(self, command, **args):
        reply = self.reply(command, **args)
        assert reply["success"], reply
        return reply["result"]

    def run(self, steps, tools, signature=QA, inputs=None):
        """Run a react program whose model takes `steps`, (tool, args) each; return the last prompt."""
        answers = [
            {"next_thought": "so", "next_tool_name": name, "next_tool_args": args}
            for name, args in [*steps, ("finish", {})]
        ]
        done = {"reasoning": "so", **{field["name"]: "done" for field in signature["outputs"]}}
        self.ask("register_tools", tools=tools, replace=True)
        self.ask("configure_lm", provider="scripted", answers=[*answers, done])
        self.ask("create_program", id="p", signature=signature, program_type="react")
        result = self.ask("execute_program", program_id="p", inputs=inputs or {"question": "Where?"})
        self.ask("delete_program", program_id="p")
        return result["outputs"]


@pytest.fixture
def host():
    return Host()


@pytest.fixture
def prompts(monkeypatch):
    """Return the texts of all requests to a scripted model."""
    from bridge.adapters.dspy.engines.text import TextEngine

    seen = []
    complete = TextEngine.complete

    def recorded(self, request):
        texts = [part.text for message in request.messages for part in message.parts]
        seen.append("\n".join([str(request.system or ""), *texts]))
        return complete(self, request)

    monkeypatch.setattr(TextEngine, "complete", recorded)
    return seen


def test_tools_are_added_and_replaced_by_name(host):
    """The reply lists them; `replace` removes all others."""

    def register(*names, **more):
        reply = host.ask("register_tools", tools=[{"name": name} for name in names], **more)
        return {key: reply[key] for key in ("tools", "added", "replaced", "removed")}

    assert register("a", "b") == {
        "tools": ["a", "b"],
        "added": ["a", "b"],
        "replaced": [],
        "removed": [],
    }
    assert register("b", "c") == {
        "tools": ["a", "b", "c"],
        "added": ["c"],
        "replaced": ["b"],
        "removed": [],
    }
    assert register("d", "a", replace=True) == {
        "tools": ["d", "a"],
        "added": ["d"],
        "replaced": ["a"],
        "removed": ["b", "c"],
    }
    assert register(replace=True)["removed"] == ["d", "a"]


def test_react_needs_tools(host):
    """A react program is refused if the session has no tools, or if none are chosen."""
    for more in ({}, {"tools": []}):
        reply = host.reply("create_program", signature=QA, program_type="react", **more)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.tools")
    host.ask("register_tools", tools=[{"name": "a"}])
    reply = host.reply("create_program", signature=QA, program_type="react", tools=[])
    assert reply["code"] == "invalid_args"
    host.ask("create_program", signature=QA, program_type="react")


@pytest.mark.parametrize("program_type", ["predict", "chain_of_thought"])
@pytest.mark.parametrize("more", [{"tools": []}, {"max_iters": 3}])
def test_other_programs_take_no_tools(host, program_type, more):
    """Tools of such programs are refused instead of being ignored."""
    reply = host.reply("create_program", signature=QA, program_type=program_type, **more)
    (name,) = more
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", f"args.{name}")


PERSON = {"$defs": {"City": {"type": "string", "minLength": 2}}, "type": "object"}
TWICE = {"$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)}}
TWICE["$defs"]["60"] = ALL
EVIL = {"type": "string", "pattern": "^(a+)+$"}
LONG = "a" * 50 + "!"
OPEN = {"type": "object", "additionalProperties": True}
SCHEMAS = [
    # a tool's schema, arguments of a call, the error that the model gets in place of the result
    ({}, {}, None),
    ({}, {"x": 1}, "has no argument x"),
    ({"type": "object"}, {}, None),
    ({"type": "object"}, {"x": 1}, "has no argument x"),
    ({"type": "object", "properties": {}}, {}, None),
    ({"type": "object", "properties": {}, "required": []}, {}, None),
    ({"type": "object", "additionalProperties": False}, {"x": 1}, "has no argument x"),
    ({"type": "object", "additionalProperties": True}, {"x": 1}, None),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, {"x": 1}, None),
    (
        {"type": "object", "additionalProperties": {"type": "integer"}},
        {"x": "a"},
        "cannot take x: 'a' is not of type 'integer'",
    ),
    (CITY, {"city": "Graz"}, None),
    (CITY, {}, "needs the argument city"),
    (CITY, {"city": 5}, "cannot take city: 5 is not of type 'string'"),
    (ALL, {"city": "Graz"}, None),
    (ALL, {}, "needs the argument city"),
    ({"type": "object", "properties": CITY}, {}, None),
    ({"type": "object", "properties": {"x": True}}, {"x": [1]}, None),
    # names that are keywords of JSON Schema, too
    ({"type": {"type": "string"}}, {"type": "a"}, None),
    ({"properties": {"type": "object"}}, {"properties": {}}, None),
    ({"required": {"type": "boolean"}}, {"required": True}, None),
    # names that Python or DSPy would take
    ({"self": {}, "instance": {}}, {"self": 1, "instance": 2}, None),
    ({"class": {}, "a-b": {}, "": {}, "name": {}}, {"class": 1, "a-b": 2, "": 3, "name": 4}, None),
    ({"args": {}, "kwargs": {}, "func": {}}, {"args": 1, "kwargs": 2, "func": 3}, None),
    # references and compositions
    (
        {**PERSON, "properties": {"city": {"$ref": "#/$defs/City"}}},
        {"city": "G"},
        "cannot take city: 'G' is too short",
    ),
    ({**PERSON, "properties": {"city": {"$ref": "#/$defs/City"}}}, {"city": "Graz"}, None),
    ({"$ref": "#/$defs/A", "$defs": {"A": ALL}}, {}, "needs the argument city"),
    ({"allOf": [ALL, {"properties": {"n": {"type": "integer"}}}]}, {"city": "Graz", "n": 1}, None),
    ({"anyOf": [ALL, {"properties": {"n": {}}, "required": ["n"]}]}, {"n": 1}, None),
    ({"city": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, {"city": None}, None),
    ({"city": {"anyOf": [{"type": "string"}, {"type": "null"}]}}, {"city": 1}, "cannot take city"),
    ({"$schema": "http://json-schema.org/draft-07/schema#", **ALL}, {"city": "Graz"}, None),
    # patterns, which would take years in an engine that tries all ways
    ({"x": EVIL}, {"x": "aaa"}, None),
    ({"x": EVIL}, {"x": LONG}, f"cannot take x: '{LONG}' does not match"),
    (
        {"$schema": "http://json-schema.org/draft-04/schema#", **OPEN, "additionalProperties": EVIL},
        {"x": LONG},
        "cannot",
    ),
    (
        {**OPEN, "patternProperties": {"^(a+)+$": {"type": "integer"}}},
        {"aa": "b"},
        "cannot take aa: 'b' is not of type",
    ),
    ({**OPEN, "patternProperties": {"^(a+)+$": False}}, {LONG: 1}, None),
    ({**OPEN, "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {"aa": 1}, None),
    ({**OPEN, "patternProperties": {"^(a+)+$": {}}, "additionalProperties": False}, {LONG: 1}, "cannot take"),
    # what is not known to be wrong: look-around, a dialect of a part
    ({"x": {"pattern": "^(?=b)"}}, {"x": "c"}, None),
    ({**OPEN, "patternProperties": {"^(?=b)": {}}, "additionalProperties": False}, {"c": 1}, None),
    ({**OPEN, "patternProperties": {"^(a+)+$": {}}, "unevaluatedProperties": False}, {LONG: 1}, None),
    ({"x": {**EVIL, "$schema": "http://json-schema.org/draft-07/schema#"}}, {"x": LONG}, None),
    # references in circles, and to one thing in many ways
    ({"allOf": [{"$ref": "#"}] * 20, "properties": {"n": {}}}, {"n": 1}, None),
    ({**TWICE, "$ref": "#/$defs/0"}, {}, "needs the argument city"),
]


@pytest.mark.parametrize("form", ["args", "inputSchema"])
@pytest.mark.parametrize(("schema", "arguments", "wrong"), SCHEMAS)
def test_schemas_of_arguments(host, prompts, schema, arguments, wrong, form):
    """Schemas as MCP servers and hosts write them are accepted.

    Wrong calls are one line for the model and do not reach the host.
    """
    host.run([("t", arguments)], [{"name": "t", "description": None, form: schema}])
    if wrong is None:
        assert host.called == [("t", arguments)]
        assert "[[ ## observation_0 ## ]]\nfine" in prompts[1]
    else:
        assert host.called == []
        assert f"[[ ## observation_0 ## ]]\nerror: t {wrong}" in prompts[1]
    assert "Traceback" not in prompts[-1]


def test_numbers_are_exact(host, prompts):
    """A number that no float can represent reaches the host as text, or is refused if the schema wants a number."""
    written = '{"x": 1234567890123456.78, "y": 0.1, "z": 12345678901234567891}'
    host.run([("t", written)], [{"name": "t", "args": {"x": {}, "y": {}, "z": {}}}])
    assert host.called == [("t", {"x": "1234567890123456.78", "y": 0.1, "z": 12345678901234567891})]
    number = {"x": {"type": "number"}}
    host.run([("t", '{"x": 1234567890123456.78}')], [{"name": "t", "args": number}])
    assert "error: t cannot take x: '1234567890123456.78' is not of type" in prompts[-1]


def nested(depth):
    schema = ALL
    for _ in range(depth):
        schema = {"allOf": [schema]}
    return schema


@pytest.mark.parametrize(
    ("tool", "text"),
    [
        ({"name": ""}, "1 to 200 characters"),
        ({"name": "n" * 201}, "1 to 200 characters"),
        ({"name": "t", "args": {"x": 5}}, "not a JSON Schema"),
        ({"name": "t", "args": {"x": {"type": "strng"}}}, "not a JSON Schema"),
        ({"name": "t", "args": {"type": "object", "properties": {"x": 5}}}, "JSON Schema"),
        ({"name": "t", "args": {"type": "object", "properties": {"x": [{"$ref": "#"}]}}}, "JSON Schema"),
        ({"name": "t", "args": {"x": {"$ref": "http://127.0.0.1/a"}}}, "only references within"),
        ({"name": "t", "args": {"x": {"items": [{"$ref": "file:///etc"}]}}}, "only references within"),
        ({"name": "t", "args": {"type": "object", "required": [{}]}}, "required.0"),
        ({"name": "t", "args": {"type": "object", "$schema": {}}}, "$schema: expected a URL"),
        ({"name": "t", "args": nested(150)}, "nested too deeply"),
        ({"name": "t", "args": {"x": {"anyOf": [{}] * 5000}}}, "args.tools[1].args: a schema with more than 5000 maps"),
        ({"name": "t", "args": CITY, "inputSchema": ALL}, "args and inputSchema mean the same"),
    ],
)
def test_wrong_declarations(host, tool, text):
    """Errors have the path, and no reference is fetched."""
    reply = host.reply("register_tools", tools=[{"name": "first"}, tool])
    assert (reply["success"], reply.get("code")) == (False, "invalid_args"), reply
    assert reply["details"]["path"].startswith("args.tools[1]")
    assert text in reply["error"]


@pytest.mark.parametrize(
    ("format", "value", "kind"),
    [
        (MSGPACK, msgspec.msgpack.Ext(5, b"x"), "a MessagePack extension"),
        (ETF, b"\xff", "binary data"),
        (MSGPACK, float("inf"), "inf"),
    ],
)
def test_schemas_and_answers_without_a_text_form(format, value, kind):
    """They would be shown to a model, so they are refused with their path."""
    host = Host(format)
    tool = {"name": "t", "args": {"x": {"default": [value]}}}
    reply = host.reply("register_tools", tools=[tool])
    assert reply["details"]["path"] == "args.tools[0].args.x.default[0]"
    assert kind in reply["error"]
    reply = host.reply("configure_lm", provider="scripted", answers=[{"a": value}])
    assert reply["details"]["path"] == "args.answers[0].a"
    reply = host.reply("configure_lm", provider="offline", answers=[{"a": 1}])
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.answers")


NAMES = {  # the host's name -> the model's
    "plain": "plain",
    "with-dash": "with-dash",
    "server.tool": "server_tool",
    "server/tool": "server_tool_2",
    "two words": "two_words",
    "größe": "gr__e",
    "finish": "finish_2",
    "self": "self",
    "class": "class",
    "x" * 100: "x" * 50,
    "über": "_ber",
}


def test_names_of_tools(host, prompts):
    """The model uses names that providers accept; the host gets its own names, which the prompt shows too."""
    tools = [{"name": name, "description": "It."} for name in NAMES]
    assert host.run([(name, {}) for name in NAMES.values()], tools) == {
        "reasoning": "so",
        "answer": "done",
    }
    assert [name for name, _ in host.called] == list(NAMES)
    for index, (own, name) in enumerate(NAMES.items(), 1):
        shown = "It." if own == name else f"{own}: It."
        assert f"({index}) {name}, whose description is <desc>{shown}</desc>" in prompts[0]


@pytest.mark.parametrize(
    ("format", "result", "place"),
    [
        (MSGPACK, {"a": [1, msgspec.msgpack.Ext(5, b"x")]}, "result.a[1] is a MessagePack ext"),
        (MSGPACK, b"\xff\xfe", "result is binary data"),
        (MSGPACK, {"x": float("nan")}, "result.x is nan"),
        (ETF, {"x": [b"\xff"]}, "result.x[0] is binary data"),
        (ETF, {"x": 10**4300}, "result.x is an integer of more than 4300 digits"),
    ],
)
def test_results_without_a_text_form(prompts, format, result, place):
    """The model gets an error with the path instead of Python's repr."""
    host = Host(format)
    host.tool = lambda name, args: result
    host.run([("t", {})], [{"name": "t"}])
    assert f"error: t returned what has no text form: {place}" in prompts[1]


def test_results_reach_the_prompt_as_json(host, prompts):
    """Maps and lists are JSON in the next prompt."""
    host.tool = lambda name, args: {"a": [1, None, "é"], "b": True}
    host.run([("t", {})], [{"name": "t"}])
    (line,) = [line for line in prompts[1].splitlines() if line.startswith('{"a"')]
    assert json.loads(line) == {"a": [1, None, "é"], "b": True}


@pytest.mark.parametrize("result", [[1, 2], [None], [True, "a"], [{"b": True}], [[1.5], []], []])
def test_lists_reach_the_prompt_as_json(host, prompts, result):
    """This holds for any items; DSPy alone would take each list for a list of texts."""
    host.tool = lambda name, args: result
    host.run([("t", {})], [{"name": "t"}])
    (seen,) = re.findall(r"\[\[ ## observation_0 ## \]\]\n(.*)", prompts[1])
    assert json.loads(seen) == result


def test_tuples_reach_the_prompt_as_json(prompts):
    """Tuples are written as lists."""
    host = Host(ETF)
    host.tool = lambda name, args: [(1, "a"), (2, "b")]
    host.run([("t", {})], [{"name": "t"}])
    assert '\n[[1, "a"], [2, "b"]]\n' in prompts[1]
