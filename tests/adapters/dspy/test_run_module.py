"""Commands of your own that run modules, beside the commands of DSPy."""

from __future__ import annotations

import json
import os
import threading

import pytest

from bridge import Adapter, Client, Dispatcher, Options, errors, listen
from bridge.adapters.dspy import adapter as dspy_adapter

TWO_STAGES = [{"answer": "draft"}, {"reasoning": "why", "answer": "final"}]
held, go_on = threading.Semaphore(0), threading.Event()


def lookup(word: str) -> str:
    """Look up a word."""
    return f"{word} means something"


def hold(word: str) -> str:
    """Wait."""
    held.release()
    go_on.wait()
    return word


@pytest.fixture(scope="module")
def client(support):
    environment = {"PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])}
    flags = ["--program", "stages=own_modules:Stages"]
    with Client.start(adapter="own_commands:adapter", flags=flags, env=environment, tools=[lookup, hold]) as client:
        yield client
        go_on.set()


def configure(client, answers, session=None, **settings):
    args = {"provider": "scripted", "answers": answers, **settings}
    client.call("configure_lm", args, session_id=session)


def test_a_command_runs_a_module_with_the_sessions_model(client):
    """Sessions have models of their own."""
    configure(client, TWO_STAGES, "a")
    configure(client, [{"answer": "x"}, {"reasoning": "y", "answer": "other"}], "b")
    assert client.call("answer", {"question": "?"}, session_id="b") == {"answer": "other"}
    assert client.call("answer", {"question": "?"}, session_id="a") == {"answer": "final"}
    with pytest.raises(errors.LMNotConfigured):
        client.call("answer", {"question": "?"}, session_id="c")
    with pytest.raises(errors.LMError, match="all 2 answers are used up"):
        client.call("answer", {"question": "?"}, session_id="a")


def test_its_stages_are_streamed_and_counted(client):
    configure(client, TWO_STAGES)
    with client.stream("answer", {"question": "?"}) as stream:
        found = [(data["predictor"], data["field"]) for event, data in stream if event == "chunk"]
        assert stream.result() == {"answer": "final"}
    assert found == [("draft", "answer"), ("final.predict", "reasoning"), ("final.predict", "answer")]
    counters = client.call("get_stats", {"include": ["commands"]})["commands"]["answer"]["counters"]
    assert counters["lm_calls"] >= 2


def test_settings_of_one_run(client):
    """A run with other settings is not answered from the cache."""
    configure(client, [*TWO_STAGES, {"answer": "-"}, {"reasoning": "-", "answer": "warm"}], "s", cache=10)
    results = [
        client.call("answer", {"question": "?", **more}, session_id="s")["answer"]
        for more in ({}, {}, {"temperature": 1.0}, {})
    ]
    assert results == ["final", "final", "warm", "final"]


def test_the_tools_of_the_host(client):
    configure(client, [])
    assert client.call("ask_tools", {"question": "tea"}) == {"result": "tea means something"}
    with pytest.raises(errors.HandlerError, match="host_tools is called while a module runs"):
        client.call("outside")


def test_a_cancel_ends_the_module(client):
    configure(client, [])
    call = client.submit("persist", session_id="cancelled")
    held.acquire()
    call.cancel()
    with pytest.raises(errors.Cancelled):
        call.result()


def test_a_session_is_needed(client):
    with pytest.raises(errors.HandlerError, match="ValueError: run_module needs a session"):
        client.call("without_session")


def test_the_commands_of_dspy_are_there_too(client):
    """And programs of the operator."""
    described = client.call("describe")
    assert {"answer", "execute_program", "create_program", "register_tools"} <= set(described["commands"])
    configure(client, TWO_STAGES)
    args = {"program_id": "stages", "inputs": {"question": "?"}}
    assert client.call("execute_program", args)["outputs"]["answer"] == "final"
    assert client.call("get_stats", {"include": ["worker"]})["worker"]["adapter"] == "own"


def test_an_extended_adapter_leaves_the_other_one_alone():
    """A command that the other one has cannot be declared again."""
    extended = dspy_adapter.extended("more")
    assert isinstance(extended, Adapter)
    extended.command("more")(lambda args, context: {})
    assert "more" not in dspy_adapter.commands
    with pytest.raises(ValueError, match="adapter 'more' already has a command 'execute_program'"):
        extended.command("execute_program")(lambda args, context: {})


class Listener:
    """Notes what begins, and the facts of the stage."""

    def __init__(self):
        self.seen = []
        self.facts = {}

    def started(self, activity):
        parent = activity.parent and activity.parent.name
        self.seen.append((activity.kind, activity.name, parent, activity.request_id))
        if activity.kind == "stage":
            self.facts = activity.facts

    def complete(self, activity):
        pass

    failed = complete


def test_a_run_is_a_stage_of_its_call():
    """Listeners see the module as a workflow, and the calls of models within it, also those on other threads."""
    dispatcher = Dispatcher(dspy_adapter, Options(programs=("many=own_modules:Many",)))
    listener = Listener()
    args = {"provider": "scripted", "answers": [{"a": "1"}] * 3}
    dispatcher.call(json.dumps({"id": 1, "command": "configure_lm", "args": args}).encode(), 60)
    stop = listen(listener)
    args = {"program_id": "many", "inputs": {"questions": ["x", "y", "z"]}}
    reply = json.loads(dispatcher.call(json.dumps({"id": 2, "command": "execute_program", "args": args}).encode(), 60))
    stop()
    assert reply["success"], reply
    assert listener.seen == [
        ("call", "execute_program", None, 2),
        ("stage", "invoke_workflow", "execute_program", 2),
        *[("lm", "chat", "invoke_workflow", 2)] * 3,
    ]
    assert listener.facts == {"workflow": "Many", "program_id": "many", "program_type": "module"}
