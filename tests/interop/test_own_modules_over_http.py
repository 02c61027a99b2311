"""Modules of the operator whose model is a provider on the network: images, threads, refusals, retries."""

from __future__ import annotations

import os

import pytest

from bridge import Client, errors
from model_server import KEY, PROTOCOLS, ModelServer, OpenAI

PROGRAMS = {"many": "Many", "fallback": "Fallback", "looks": "Looks"}
FLAGS = [part for name, attribute in PROGRAMS.items() for part in ("--program", f"{name}=own_modules:{attribute}")]
WORDS = "I will not say that."


@pytest.fixture(scope="module")
def client(support):
    environment = {"PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])}
    with Client.start(flags=FLAGS, env=environment) as client:
        yield client


def configure(client, server, protocol=OpenAI, **settings):
    args = {"model": protocol.model, "api_base": server.url + protocol.path, "api_key": KEY, **settings}
    client.call("configure_lm", args, timeout=60)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_threads_of_a_module_stream(client, protocol):
    """Each call has its own answer, whose pieces have its number."""
    said = ["[[ ## a ## ]]\n", "one ", "answer"]
    with ModelServer(lambda body: (200, {}, protocol.events(said))) as server:
        configure(client, server, protocol)
        args = {"program_id": "many", "inputs": {"questions": ["x", "y", "z"]}}
        texts: dict[int, str] = {}
        with client.stream("execute_program", args, timeout=60) as stream:
            for event, data in stream:
                if event == "chunk":
                    texts[data["call"]] = texts.get(data["call"], "") + data["text"]
            assert stream.result()["outputs"] == {"answers": ["one answer"] * 3}
    assert texts == dict.fromkeys((1, 2, 3), "one answer")


@pytest.mark.parametrize("stream", [False, True])
def test_a_module_does_not_catch_a_refusal(client, stream):
    """But it may catch other failures of its model."""
    refusal = OpenAI.events([], refusal=WORDS) if stream else OpenAI.whole(None, refusal=WORDS)
    args = {"program_id": "fallback", "inputs": {"q": "?"}}
    with ModelServer(lambda body: (200, {}, refusal)) as server:
        configure(client, server)
        start = client.stream if stream else client.submit
        with pytest.raises(errors.LMError) as raised:
            start("execute_program", args, timeout=60).result()
    assert raised.value.details["lm_code"] == "refusal"
    assert raised.value.details["refusal"] == WORDS
    with ModelServer(lambda body: (401, {}, {"error": {"message": "wrong key"}})) as server:
        configure(client, server)
        assert client.call("execute_program", args, timeout=60)["outputs"] == {"a": "LMAuthError"}


def test_requests_of_a_module_are_repeated(client):
    replies = iter([(503, {}, {"error": {"message": "busy"}}), (200, {}, OpenAI.whole("[[ ## a ## ]]\nfine"))])
    with ModelServer(lambda body: next(replies)) as server:
        configure(client, server, retry_wait=0.001)
        args = {"program_id": "fallback", "inputs": {"q": "?"}}
        assert client.call("execute_program", args, timeout=60)["outputs"] == {"a": "fine"}


def test_an_image_reaches_the_model(client):
    """From an input of the module, as the provider wants it."""
    picture = "data:image/png;base64,iVBORw0KGgo="
    with ModelServer(lambda body: (200, {}, OpenAI.whole("[[ ## a ## ]]\na cat"))) as server:
        configure(client, server)
        args = {"program_id": "looks", "inputs": {"picture": {"url": picture}, "q": "What?"}}
        assert client.call("execute_program", args, timeout=60)["outputs"] == {"a": "a cat"}
        (body,) = server.requests
    parts = body["messages"][-1]["content"]
    assert [part["image_url"]["url"] for part in parts if part["type"] == "image_url"] == [picture]
