"""Any signature, type and tools: execute_program runs every program that create_program accepts."""

from __future__ import annotations

import datetime
import decimal
import types
import uuid
from functools import partial
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge import Dispatcher
from bridge.adapters.dspy import adapter, language_model
from bridge.adapters.dspy.tools import Tool, model_names
from bridge.adapters.dspy.tools.checks import MAX_NAME
from bridge.adapters.type_names import _PLAIN, parse_type
from bridge.wire.codec import FORMATS

# What Python, pydantic, DSPy and its prompts have under such names, and what is no word.
NAMES = [
    *("class", "self", "instance", "None", "__init__", "__class__", "_private", "copy", "json"),
    *("model_config", "model_fields", "schema", "config", "signature", "demos", "lm", "history"),
    *("reasoning", "completed", "trajectory", "next_thought", "next_tool_name", "finish", "tools"),
    *(
        "a b",
        " a",
        "a\nb",
        "a.b",
        "a-b",
        "1a",
        "\u00e9",
        "\ufb01",
        "\u0301",
        "\0",
        "\u2028a",
        "{x}",
    ),
    *("`a`", "[[ ## a ## ]]", "%s", "\\", '"', "x" * 64, "x" * 65, "x" * 3000, "field_reasoning"),
]
SCHEMAS: list[Any] = [
    *({}, {"x": {"type": "string"}}, {"self": {}, "class": {}, "": {}}, {"type": "object"}),
    {"type": "object", "properties": {"a": True}, "additionalProperties": True},
    {"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"n": {"$ref": "#/$defs/A"}}}}},
    {"x": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}},
]
LITERALS = ["a", '"b c"', "1", "-1", "true", "none", '"it\'s"', '"{x}"']

VALUES: dict[Any, Any] = {
    str: "text",
    int: 5,
    float: 0.5,
    bool: True,
    Any: "anything",
    types.NoneType: None,
    datetime.date: "2024-02-29",
    datetime.datetime: "2024-02-29T10:11:12+02:00",
    datetime.time: "10:11:12",
    decimal.Decimal: "0.10",
    uuid.UUID: "12345678-1234-5678-1234-567812345678",
}
# Those of images, conversations and source code cannot be everywhere.
TYPES = sorted(name for name, type in _PLAIN.items() if type in VALUES)

names = st.sampled_from(NAMES) | st.text(min_size=1, max_size=8).filter(str.strip)
literals = st.lists(st.sampled_from(LITERALS), min_size=1, max_size=3, unique=True)
type_names = st.recursive(
    st.sampled_from(TYPES) | literals.map(lambda each: f"enum<{'|'.join(each)}>"),
    lambda inner: st.one_of(
        inner.map("list<{}>".format),
        inner.map("optional<{}>".format),
        st.tuples(inner, inner).map(lambda both: "union<{}|{}>".format(*both)),
        st.tuples(st.sampled_from(["str", "int", "bool", "any", "enum<1,a>"]), inner).map(
            lambda both: "dict<{}, {}>".format(*both)
        ),
    ),
    max_leaves=4,
)
descriptions = st.sampled_from([None, "", "what it is", "{x}", "[[ ## a ## ]]", "`q`", "a\n\nb"])
fields = st.fixed_dictionaries(
    {"name": names, "type": type_names, "description": descriptions},
)


def sides(least: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(fields, min_size=least, max_size=3, unique_by=lambda field: field["name"])


tools = st.lists(
    st.fixed_dictionaries({"name": names.filter(lambda name: len(name) <= MAX_NAME), "args": st.sampled_from(SCHEMAS)}),
    min_size=1,
    max_size=3,
    unique_by=lambda tool: tool["name"],
)


def example(type: Any) -> Any:
    """Return a JSON value of the type."""
    arguments = get_args(type)
    origin = get_origin(type)
    if origin in (Union, types.UnionType, Literal):
        first = arguments[0]
        return first if origin is Literal else example(first)
    if origin is list:
        return [example(arguments[0])]
    if origin is dict:
        key = example(arguments[0])
        return {str(key).lower() if isinstance(key, bool) else str(key): example(arguments[1])}
    return VALUES[type]


def examples(side: list[dict[str, Any]]) -> dict[str, Any]:
    return {field["name"]: example(parse_type(field["type"])) for field in side}


@pytest.fixture(scope="module", params=FORMATS, ids=lambda format: format.name)
def ask(request):
    """Return a function ask(command, **args) that returns the reply, in one of the formats."""
    format, dispatcher = request.param, Dispatcher(adapter)

    def ask(command, **args):
        message = {"id": 1, "command": command, "args": args, "session_id": "s"}
        return format.decode(dispatcher.call(format.encode(message), 60))

    return ask


def scripted(kind: str, outputs: list[dict[str, Any]], declared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answers for one run of a program of the type `kind`, which calls each of its tools once."""
    called = model_names([Tool(tool["name"]) for tool in declared], ("finish",))
    steps = [{"next_thought": "I go on.", "next_tool_name": name, "next_tool_args": {}} for name in (*called, "finish")]
    return [*(steps if kind == "react" else []), {"reasoning": "because", **examples(outputs)}]


kinds = st.sampled_from(["predict", "chain_of_thought", "react"])


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=sides(0), outputs=sides(1), kind=kinds, declared=tools)
def test_what_is_created_runs(ask, inputs, outputs, kind, declared):
    """It returns the values that the model wrote, under the host's names."""
    reply = ask("register_tools", tools=declared, replace=True)
    assert reply["success"], reply
    signature = {"inputs": inputs, "outputs": outputs}
    reply = ask("create_program", id="p", signature=signature, program_type=kind, if_exists="replace")
    assert reply["success"], reply
    assert ask("configure_lm", provider="scripted", answers=scripted(kind, outputs, declared))["success"]
    reply = ask("execute_program", program_id="p", inputs=examples(inputs))
    assert reply["success"], reply
    found = reply["result"]["outputs"]
    assert {name: found[name] for name in examples(outputs)} == examples(outputs)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(inputs=sides(0), outputs=sides(1), kind=kinds, declared=tools, options=st.sampled_from([{}, {"max_tokens": 5}]))
def test_the_model_gets_what_dspy_would_send(ask, inputs, outputs, kind, declared, options):
    """If DSPy makes the requests, and then the bridge does, the answers to the first run are those to the second."""
    ask("register_tools", tools=declared, replace=True)
    signature = {"inputs": inputs, "outputs": outputs}
    ask("create_program", id="p", signature=signature, program_type=kind, if_exists="replace")
    ask("configure_lm", provider="scripted", answers=scripted(kind, outputs, declared), cache=99)
    run = partial(ask, "execute_program", program_id="p", inputs=examples(inputs), options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "IS_COMPARED", False)
        first = run()
    second = run()
    assert first["success"], first
    assert second["success"], second
    assert second["result"]["outputs"] == first["result"]["outputs"]
