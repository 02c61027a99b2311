"""Programs in every format of prompts and replies: outputs, streams, and which format is chosen."""

from __future__ import annotations

import json

import pytest

FORMATS = ["chat", "json", "xml", "two_step", "baml"]
SIGNATURE = {
    "inputs": [{"name": "question"}, {"name": "passage"}],
    "outputs": [
        {"name": "answer"},
        {"name": "places", "type": "list<string>"},
        {"name": "count", "type": "integer"},
        {"name": "shares", "type": "dict<string, decimal>"},
    ],
}
INPUTS = {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris. It has 3 wings."}
OUTPUTS = {
    "answer": '<b>"In"</b> the &lt; city\n\nthe [[ ## count ## ]] of {Paris}\n  é \U0001f600',
    "places": ["a, b", "<c> & d", ""],
    "count": 10**20,
    "shares": {"x": "0.10", "y z": "3"},
}


@pytest.fixture
def program(ask):
    ask("create_program", id="p", signature=SIGNATURE, session_id="s")


def answer_with(ask, answer, **settings):
    """Let the model answer each request with `answer`."""
    answers = [answer] * 4
    ask("configure_lm", provider="scripted", answers=answers, session_id="s", **settings)


@pytest.mark.parametrize("adapter", FORMATS)
def test_outputs_are_exact(ask, program, adapter):
    answer_with(ask, OUTPUTS)
    done = ask("execute_program", program_id="p", inputs=INPUTS, adapter=adapter, session_id="s")
    assert done["outputs"] == OUTPUTS


@pytest.mark.parametrize("adapter", FORMATS)
def test_the_offline_model_answers_in_every_format(ask, program, adapter):
    ask("configure_lm", provider="offline", session_id="s")
    signature = {**SIGNATURE, "outputs": SIGNATURE["outputs"][:3]}
    ask("create_program", id="p", signature=signature, if_exists="replace", session_id="s")
    outputs = ask("execute_program", program_id="p", inputs=INPUTS, adapter=adapter, session_id="s")["outputs"]
    assert (outputs["answer"], "Paris" in outputs["places"]) == ("Paris", True)


@pytest.mark.parametrize(
    ("adapter", "path"),
    [
        ("yaml", "args.adapter"),
        ({"name": "JSON"}, "args.adapter.name"),
        ({"name": "json", "fallback": "json"}, "args.adapter.fallback"),
        ({"name": "baml", "fallback": "json"}, "args.adapter.fallback"),
        ({"name": "chat", "fallback": "xml"}, "args.adapter.fallback"),
        ({"name": "chat", "model": "cheap"}, "args.adapter.model"),
        ({"name": "chat", "models": "cheap"}, "args.adapter"),
        ({"name": "chat", "native": "no"}, "args.adapter.native"),
        (7, "args.adapter"),
    ],
)
@pytest.mark.parametrize("command", ["create_program", "execute_program"])
def test_what_is_not_an_adapter_is_refused(call, ask, program, command, adapter, path):
    """Unknown names and keys, and settings of another adapter; no model is called."""
    args = {"signature": SIGNATURE} if command == "create_program" else {"program_id": "p", "inputs": INPUTS}
    reply = call(command, adapter=adapter, session_id="s", **args)
    assert reply["code"] == "invalid_args"
    assert reply["details"]["path"].startswith(path), reply


def test_an_unknown_adapter_is_answered_with_the_known_ones(call, program):
    reply = call("execute_program", program_id="p", inputs=INPUTS, adapter="yaml", session_id="s")
    assert all(name in reply["error"] for name in FORMATS)


def test_the_format_of_a_call_comes_before_that_of_the_program(ask, call):
    """And that of the program before the default."""
    signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
    ask("create_program", id="j", signature=signature, adapter="json", session_id="s")
    written = {"json": json.dumps({"a": "json"}), "xml": "<a>xml</a>"}
    for adapter, expected in ((None, "json"), ("xml", "xml"), ("json", "json")):
        answer_with(ask, written[expected])
        more = {} if adapter is None else {"adapter": adapter}
        done = ask("execute_program", program_id="j", inputs={"q": "?"}, session_id="s", **more)
        assert done["outputs"] == {"a": expected}


def test_the_format_of_a_model_is_used_if_nothing_else_says_one(ask):
    ask("create_program", id="p", signature={"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}, session_id="s")
    answer_with(ask, json.dumps({"a": "json"}), adapter="json")
    assert ask("execute_program", program_id="p", inputs={"q": "?"}, session_id="s")["outputs"] == {"a": "json"}
    answer_with(ask, "<a>xml</a>", adapter="json")
    done = ask("execute_program", program_id="p", inputs={"q": "?"}, adapter="xml", session_id="s")
    assert done["outputs"] == {"a": "xml"}


def test_a_named_model_extracts_the_fields(ask, call):
    """It gets the answer of the first model; one that is not configured is an error before any model is called."""
    ask("create_program", id="p", signature={"inputs": [{"name": "q"}], "outputs": [{"name": "n", "type": "int"}]})
    ask("configure_lm", provider="scripted", answers=["About [[ ## n ## ]] seven."])
    args = {"program_id": "p", "inputs": {"q": "?"}, "include": ["prompt"]}
    two_steps = {"name": "two_step", "model": "cheap"}
    reply = call("execute_program", adapter=two_steps, **args)
    assert (reply["code"], "cheap" in reply["error"]) == ("lm_not_configured", True)
    ask("configure_lm", name="cheap", provider="scripted", answers={"seven": {"n": 7}})
    done = ask("execute_program", adapter=two_steps, **args)
    assert done["outputs"] == {"n": 7}
    ask("configure_lm", name="cheap", provider="scripted", answers=[{"n": "none"}])
    ask("configure_lm", provider="scripted", answers=["Seven."])
    reply = call("execute_program", adapter=two_steps, **args)
    assert reply["details"]["reply"].startswith("[[ ## n ## ]]"), "the reply that could not be read is the second"


@pytest.mark.parametrize("adapter", ["chat", "xml", "two_step"])
def test_a_fallback_asks_again_in_json(ask, call, adapter):
    """That is a call of the model like any other: it is counted, and a second reply that is wrong is an error."""
    ask("create_program", id="p", signature={"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}, session_id="s")
    unreadable = ["no field"] * (2 if adapter == "two_step" else 1)
    args = {"program_id": "p", "inputs": {"q": "?"}, "session_id": "s"}
    ask("configure_lm", provider="scripted", answers=[*unreadable, '{"a": "yes"}'], session_id="s")
    chosen = {"name": adapter, "fallback": "json"}
    assert ask("execute_program", adapter=chosen, **args)["outputs"] == {"a": "yes"}
    counted = ask("get_stats", include=["commands"])["commands"]["execute_program"]["counters"]
    assert (counted["lm_calls"], counted["lm_fallbacks"]) == (len(unreadable) + 1, 1)
    ask("configure_lm", provider="scripted", answers=[*unreadable, "no object", '{"a": "never"}'], session_id="s")
    assert call("execute_program", adapter=chosen, **args)["details"]["reply"] == "no object"
    ask("configure_lm", provider="scripted", answers=[*unreadable, '{"a": "never"}'], session_id="s")
    assert call("execute_program", adapter=adapter, **args)["details"]["reply"] == "no field"


def test_the_fallback_of_a_model(ask):
    """It may stand beside its adapter, or alone."""
    ask("create_program", id="p", signature={"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}, session_id="s")
    for settings in ({"fallback": "json"}, {"adapter": "xml", "fallback": "json"}):
        answers = ["no field", '{"a": "yes"}']
        ask("configure_lm", provider="scripted", answers=answers, session_id="s", **settings)
        assert ask("execute_program", program_id="p", inputs={"q": "?"}, session_id="s")["outputs"] == {"a": "yes"}
