"""What modules of the operator ask models for: settings out of range, and text without a signature."""

from __future__ import annotations

import os

import pytest

from bridge import Client, errors
from model_server import KEY, LiteLLM, ModelServer, OpenAI
from openai_server import fields


@pytest.fixture(scope="module")
def client(support):
    environment = {"PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])}
    with Client.start(flags=["--program", "asking=own_modules:Asking"], env=environment) as client:
        yield client


def counters(client):
    return dict(client.stats()["commands"].get("execute_program", {}).get("counters", {}))


def run(name, value, **inputs):
    return {"program_id": "asking", "inputs": {"name": name, "value": value, **inputs}}


REFUSED = [("temperature", 2.5), ("max_tokens", -1), ("top_p", 7), ("unheard_of", 1)]
PROVIDERS = [
    {"provider": "offline"},
    {"provider": "scripted", "answers": [{"answer": "A"}]},
    {"model": OpenAI.model, "api_key": KEY},
    {"model": LiteLLM.model, "api_key": KEY},
    {"model": "host/mine"},
]


@pytest.mark.parametrize("provider", PROVIDERS, ids=str)
@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_settings_that_no_request_can_have(client, provider, name, value):
    """They fail like any other request: as an error of the model, announced and counted, and none is sent."""
    client.call("configure_lm", provider, timeout=60)
    before = counters(client)
    with client.stream("execute_program", run(name, value), timeout=60) as stream:
        events = [data["status"] for event, data in stream if event == "status"]
        with pytest.raises(errors.LMError) as raised:
            stream.result()
    assert raised.value.details["lm_code"] == "unsupported_feature"
    assert name in str(raised.value)
    assert events == ["lm_call"]
    after = counters(client)
    assert {key: after[key] - before.get(key, 0) for key in ("lm_calls", "lm_errors")} == {
        "lm_calls": 1,
        "lm_errors": 1,
    }


def test_a_module_that_insists_on_them_ends_with_its_call(client):
    client.call("configure_lm", {"provider": "offline"}, timeout=60)
    with pytest.raises(errors.DeadlineExceeded):
        client.call("execute_program", run("temperature", 2.5, insists=True), timeout=0.3)
    assert client.call("execute_program", run("temperature", 0.5), timeout=60)["outputs"]


def test_requests_without_a_signature(client):
    """They have fallbacks and are cached, like all others."""
    failed = {"error": {"message": "overloaded"}}
    with ModelServer(lambda body: (503, {}, failed)) as first, ModelServer(lambda body: None) as second:
        second.respond = lambda body: (200, {}, OpenAI.whole("plain " + fields(answer="text")))
        for name, server in (("first", first), ("second", second)):
            settings = {"model": OpenAI.model, "api_base": server.url + OpenAI.path, "api_key": KEY, "retries": 0}
            client.call("configure_lm", {**settings, "name": name, "cache": 9}, timeout=60)
        args = {**run("prompt", "Say something."), "model": {"models": ["first", "second"]}}
        for _ in range(2):
            assert client.call("execute_program", args, timeout=60)["outputs"]["answer"].startswith("plain ")
        assert (len(first.requests), len(second.requests)) == (2, 1)
