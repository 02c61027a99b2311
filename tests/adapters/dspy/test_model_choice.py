"""Named models: which one a program and a call run on, and models in order, of which the next is asked after errors."""

from __future__ import annotations

import json
import threading

import pytest

from bridge import Client, errors
from dspy_requests import QA
from model_server import KEY, LiteLLM, ModelServer, OpenAI
from openai_server import fields

FAILED = {"error": {"message": "not now", "type": "failed", "code": "failed"}}


@pytest.fixture
def run(ask):
    """Return a function run(program_id, **args) that returns the answer and the model of a run."""

    def run(program_id="qa", **args):
        result = ask("execute_program", program_id=program_id, inputs={"question": "?"}, **args)
        return result["outputs"]["answer"], result["model"]

    return run


def name(ask, name, answer, **args):
    """Configure a model of that name whose answer tells which one it is."""
    return ask("configure_lm", name=name, provider="scripted", model=name, answers={"": {"answer": answer}}, **args)


def test_the_model_of_a_call_a_program_and_a_session(ask, run):
    """The call's comes first, then the program's, then the default one."""
    assert name(ask, "cheap", "c")["name"] == "cheap"
    name(ask, "good", "g")
    ask("configure_lm", provider="scripted", answers={"": {"answer": "d"}})
    ask("create_program", id="qa", signature=QA)
    ask("create_program", id="good", signature=QA, model="good")
    assert run() == ("d", "scripted/answers")
    assert run("good") == ("g", "scripted/good")
    assert run(model="cheap") == ("c", "scripted/cheap")
    assert run("good", model="cheap") == ("c", "scripted/cheap")
    name(ask, "good", "better")
    assert run("good")[0] == "better"


def test_a_session_finds_the_names_of_all_sessions(ask, call, run):
    """Its own come first, and other sessions' are unknown."""
    name(ask, "all", "everyone's")
    name(ask, "mine", "mine", session_id="s")
    ask("create_program", id="qa", signature=QA)
    assert run(model="all", session_id="s")[0] == "everyone's"
    assert run(model="mine", session_id="s")[0] == "mine"
    name(ask, "all", "own", session_id="s")
    assert run(model="all", session_id="s")[0] == "own"
    assert run(model="all", session_id="t")[0] == "everyone's"
    reply = call("execute_program", program_id="qa", inputs={"question": "?"}, model="mine", session_id="t")
    assert (reply["code"], reply["details"]) == ("lm_not_configured", {"name": "mine", "known": ["all"]})


WRONG = [
    ("", "args.model"),
    ("openai/gpt-4o", "args.model"),
    ("a b", "args.model"),
    ("host/", "args.model"),
    (5, "args.model"),
    ([], "args.model"),
    ({}, "args.model.models"),
    ({"models": []}, "args.model.models"),
    ({"models": ["a"] * 9}, "args.model.models"),
    ({"models": ["a", "a"]}, "args.model.models[1]"),
    ({"models": ["a", "x/y"]}, "args.model.models[1]"),
    ({"models": ["a"], "retries": 1}, "args.model.retries"),
]


@pytest.mark.parametrize(("choice", "path"), WRONG)
@pytest.mark.parametrize("command", ["create_program", "execute_program"])
def test_wrong_choices_are_refused(call, ask, command, choice, path):
    """With their path, in every command that takes one."""
    ask("create_program", id="qa", signature=QA)
    args = {"signature": QA} if command == "create_program" else {"program_id": "qa", "inputs": {"question": "?"}}
    reply = call(command, **args, model=choice)
    assert reply["code"] == "invalid_args", reply
    assert reply["details"]["path"].startswith(path.partition(".models")[0])


@pytest.mark.parametrize("wrong", ["", "a/b", "a b", "x" * 129, "\n", "host/x"])
def test_wrong_names_are_refused(call, wrong):
    """A name has no slash, which the names of providers' models have."""
    reply = call("configure_lm", name=wrong, provider="offline")
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.name")


def test_programs_of_other_models_differ(ask):
    """`if_exists: keep` tells whether the definition is the same."""
    ask("create_program", id="qa", signature=QA, model="a")
    again = {"id": "qa", "signature": QA, "if_exists": "keep"}
    assert ask("create_program", **again, model="a")["same_definition"]
    assert ask("create_program", **again, model={"models": ["a"]})["same_definition"]
    assert not ask("create_program", **again)["same_definition"]
    assert not ask("create_program", **again, model={"models": ["a", "b"]})["same_definition"]


def test_the_offline_reader_needs_no_configuration(ask, run):
    """It can be named directly."""
    ask("create_program", id="qa", signature=QA, model="offline/reader")
    assert run()[1] == "offline/reader"


@pytest.fixture(scope="module")
def client():
    """Return a client of a worker with the program qa, whose models a test names."""
    with Client.start() as client:
        client.call("create_program", {"id": "qa", "signature": QA}, timeout=60)
        yield client


class Providers:
    """Models a, b, c on loopback: a server for each, with what it responds."""

    def __init__(self, client, servers):
        self.servers = servers
        for name, server in servers.items():
            protocol = LiteLLM if name == "c" else OpenAI
            settings = {"api_base": server.url + protocol.path, "api_key": KEY, "retries": 0, "name": name}
            client.call("configure_lm", {"model": protocol.model, **settings}, timeout=60)

    def answers(self, **responses):
        for name, server in self.servers.items():
            server.requests.clear()
            server.respond = responses.get(name, lambda body: (500, {}, FAILED))

    @property
    def requests(self):
        return {name: len(server.requests) for name, server in self.servers.items()}


@pytest.fixture(scope="module")
def providers(client):
    with ModelServer(lambda body: None) as a, ModelServer(lambda body: None) as b, ModelServer(lambda body: None) as c:
        yield Providers(client, {"a": a, "b": b, "c": c})


def answering(text, is_stream=False):
    """Return a response of a model that answers `text`, as a stream if it is asked for one."""

    def respond(body):
        reply = fields(answer=text)
        return (200, {}, OpenAI.events([reply]) if body.get("stream") else OpenAI.whole(reply))

    return respond


def status(code):
    return lambda body: (code, {}, FAILED)


def cut_off(body):
    return None


def garbage(body):
    return (200, {}, b"<html>gateway</html>")


ARGS = {"program_id": "qa", "inputs": {"question": "?"}, "model": {"models": ["a", "b", "c"]}}


@pytest.mark.parametrize("failure", [status(429), status(500), status(503), status(529), cut_off])
def test_the_next_model_is_asked_after_errors_that_may_pass(client, providers, failure):
    """The result tells which one has answered; the next run begins with the first one again."""
    providers.answers(a=failure, b=answering("second"))
    result = client.call("execute_program", ARGS, timeout=60)
    assert (result["outputs"], result["model"]) == ({"answer": "second"}, "openai/test-model")
    assert providers.requests == {"a": 1, "b": 1, "c": 0}
    providers.answers(a=answering("first"))
    assert client.call("execute_program", ARGS, timeout=60)["outputs"] == {"answer": "first"}


@pytest.mark.parametrize("failure", [status(400), status(401), status(402), status(404), status(422)])
def test_other_errors_end_the_run(client, providers, failure):
    """Another model would not answer a wrong request or a wrong key either, or would hide it."""
    providers.answers(a=failure, b=answering("second"))
    with pytest.raises(errors.LMError):
        client.call("execute_program", ARGS, timeout=60)
    assert providers.requests == {"a": 1, "b": 0, "c": 0}


def test_all_models_may_fail(client, providers):
    """The error is that of the last one, which LiteLLM calls here."""
    providers.answers()
    with pytest.raises(errors.LMError) as raised:
        client.call("execute_program", ARGS, timeout=60)
    assert raised.value.details["status"] == 500
    assert providers.requests == {"a": 1, "b": 1, "c": 1}


def test_fallbacks_are_announced_and_counted(client, providers):
    """A stream gets a status for each model that was given up, and the statistics count them."""
    before = client.stats()["commands"].get("execute_program", {}).get("counters", {}).get("lm_fallbacks", 0)
    providers.answers(c=answering("third"))
    with client.stream("execute_program", ARGS, timeout=60) as stream:
        events = [data for event, data in stream if event == "status"]
        assert stream.result()["outputs"] == {"answer": "third"}
    announced = [each for each in events if each["status"] == "lm_fallback"]
    assert announced == [
        {"status": "lm_fallback", "model": "openai/test-model", "failed": "openai/test-model", "lm_code": "server"},
        {"status": "lm_fallback", "model": LiteLLM.model, "failed": "openai/test-model", "lm_code": "server"},
    ]
    counters = client.stats()["commands"]["execute_program"]["counters"]
    assert counters["lm_fallbacks"] - before == 2


def test_retries_come_before_the_next_model(client, providers):
    """Each model is asked as often as its own settings say."""
    server = providers.servers["a"]
    args = {"model": OpenAI.model, "api_base": server.url + OpenAI.path, "api_key": KEY, "retry_wait": 0}
    client.call("configure_lm", {**args, "retries": 2, "name": "patient"}, timeout=60)
    providers.answers(b=answering("second"))
    models = {"models": ["patient", "b"]}
    assert client.call("execute_program", {**ARGS, "model": models}, timeout=60)["outputs"] == {"answer": "second"}
    assert providers.requests == {"a": 3, "b": 1, "c": 0}


def test_text_that_was_streamed_is_not_withdrawn(client, providers):
    """A stream that breaks after its first words is an error, not an answer of two models."""

    def broken(body):
        events = OpenAI.events([fields(answer="begun and")[:60], " never ended"])
        return (200, {}, events[:2])

    providers.answers(a=broken, b=answering("second"))
    with client.stream("execute_program", ARGS, timeout=60) as stream:
        text = "".join(data["text"] for event, data in stream if event == "chunk")
        assert text.startswith("begun")
        with pytest.raises(errors.LMError):
            stream.result()
    assert providers.requests["b"] == 0


def test_an_unreadable_reply_is_no_reason_for_another_model(client, providers):
    """The model has answered."""
    providers.answers(a=lambda body: (200, {}, OpenAI.whole("no fields")), b=answering("second"))
    with pytest.raises(errors.LMError) as raised:
        client.call("execute_program", ARGS, timeout=60)
    assert raised.value.details["lm_code"] == "adapter_parse_error"
    assert providers.requests["b"] == 0


def test_a_body_that_is_not_json(client, providers):
    """What a gateway may send is an error of the model, with one line of text."""
    providers.answers(a=garbage, b=answering("second"))
    with pytest.raises(errors.LMError) as raised:
        client.call("execute_program", {**ARGS, "model": "a"}, timeout=60)
    assert "\n" not in str(raised.value)
    assert KEY not in json.dumps(raised.value.details)


def test_the_next_model_is_asked_after_a_slow_one(client, providers):
    """The timeout is that of each model. The deadline of the call ends both."""
    go_on = threading.Event()

    def slow(body):
        go_on.wait(60)

    server = providers.servers["a"]
    args = {"model": OpenAI.model, "api_base": server.url + OpenAI.path, "api_key": KEY, "timeout": 0.3}
    client.call("configure_lm", {**args, "name": "slow"}, timeout=60)
    args = {**ARGS, "model": {"models": ["slow", "b"]}}
    try:
        providers.answers(a=slow, b=answering("second"))
        assert client.call("execute_program", args, timeout=60)["outputs"] == {"answer": "second"}
        assert providers.requests == {"a": 1, "b": 1, "c": 0}
        providers.answers(a=slow, b=slow)
        with pytest.raises(errors.DeadlineExceeded):
            client.call("execute_program", args, timeout=0.8)
    finally:
        go_on.set()
