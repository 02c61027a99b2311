"""The settings of requests: what each provider gets of them, which are refused, and what a durable session restores."""

from __future__ import annotations

import pytest

from bridge import Client, errors
from dspy_requests import QA
from model_server import KEY, PROTOCOLS, Anthropic, Gemini, LiteLLM, ModelServer, OpenAI
from openai_server import fields

ANSWER = fields(answer="yes")
ARGS = {"program_id": "qa", "inputs": {"question": "?"}}


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        client.call("create_program", {"id": "qa", "signature": QA}, timeout=60)
        yield client


class Provider(ModelServer):
    """A model on loopback that also keeps the headers of its requests."""

    def __init__(self, protocol=OpenAI):
        super().__init__(lambda body: (200, {}, protocol.whole(ANSWER)))
        self.headers = []
        self.paths = []
        self.protocol = protocol

    def respond_to(self, handler):
        self.headers.append(dict(handler.headers))
        self.paths.append(handler.path)
        super().respond_to(handler)

    def configure(self, client, **settings):
        args = {"model": self.protocol.model, "api_base": self.url + self.protocol.path, "api_key": KEY, "retries": 0}
        return client.call("configure_lm", {**args, **settings}, timeout=60)


SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
SENT = [
    ({"temperature": 0.25}, {"temperature": 0.25}),
    ({"max_tokens": 99}, {"max_tokens": 99}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"stop": "END"}, {"stop": ["END"]}),
    ({"stop": ["A", "B"]}, {"stop": ["A", "B"]}),
    ({"seed": 42}, {"seed": 42}),
    ({"frequency_penalty": 0.5, "presence_penalty": -0.5}, {"frequency_penalty": 0.5, "presence_penalty": -0.5}),
    ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}),
    ({"reasoning_effort": "none"}, {"reasoning_effort": "none"}),
    ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}),
    ({"service_tier": "flex"}, {"service_tier": "flex"}),
]


@pytest.mark.parametrize(("settings", "sent"), SENT)
@pytest.mark.parametrize("place", ["configure_lm", "options"])
def test_what_openai_gets(client, settings, sent, place):
    """Each setting, from configure_lm or from the options of a run."""
    with Provider() as provider:
        provider.configure(client, **(settings if place == "configure_lm" else {}))
        client.call("execute_program", {**ARGS, "options": settings if place == "options" else {}}, timeout=60)
    (body,) = provider.requests
    if "max_tokens" in sent and "max_tokens" not in body:
        sent = {"max_completion_tokens": sent["max_tokens"]}
    assert {name: body.get(name) for name in sent} == sent


def test_options_come_before_the_settings_of_the_model(client):
    """One by one."""
    with Provider() as provider:
        provider.configure(client, temperature=0.1, seed=1)
        client.call("execute_program", {**ARGS, "options": {"seed": 2}}, timeout=60)
    assert (provider.requests[0]["temperature"], provider.requests[0]["seed"]) == (0.1, 2)


def test_what_gemini_and_anthropic_get(client):
    """The names are theirs."""
    with Provider(Gemini) as gemini:
        gemini.configure(client, top_k=5, stop=["END"], seed=3)
        client.call("execute_program", ARGS, timeout=60)
    config = gemini.requests[0]["generationConfig"]
    assert (config["topK"], config["stopSequences"], config["seed"]) == (5, ["END"], 3)
    with Provider(Anthropic) as anthropic:
        anthropic.configure(client, top_k=5, stop="END", top_p=0.5)
        client.call("execute_program", ARGS, timeout=60)
    body = anthropic.requests[0]
    assert (body["top_k"], body["stop_sequences"], body["top_p"]) == (5, ["END"], 0.5)


UNSUPPORTED = [
    (Anthropic, {"seed": 1}, "seed"),
    (Anthropic, {"temperature": 1.5}, "temperature"),
    (Anthropic, {"frequency_penalty": 1}, "frequency_penalty"),
    (Anthropic, {"response_format": {"type": "json_object"}}, "response_format"),
    (Gemini, {"user": "ann"}, "user"),
    (OpenAI, {"top_k": 5}, "top_k"),
]


@pytest.mark.parametrize(("protocol", "settings", "name"), UNSUPPORTED)
def test_settings_that_a_provider_lacks_are_refused(client, protocol, settings, name):
    """By configure_lm and in the options of a run, with the path, before anything is sent."""
    with Provider(protocol) as provider:
        with pytest.raises(errors.InvalidArgs) as raised:
            provider.configure(client, **settings)
        assert raised.value.details["path"] == f"args.{name}"
        provider.configure(client)
        with pytest.raises(errors.InvalidArgs) as raised:
            client.call("execute_program", {**ARGS, "options": settings}, timeout=60)
        assert raised.value.details["path"] == f"args.options.{name}"
    assert not provider.requests


WRONG = [
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"stop": ""}, "stop"),
    ({"stop": []}, "stop"),
    ({"stop": ["a", ""]}, "stop"),
    ({"stop": ["x"] * 65}, "stop"),
    ({"stop": 5}, "stop"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"frequency_penalty": 3}, "frequency_penalty"),
    ({"presence_penalty": -3}, "presence_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "text"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
    ({"service_tier": ""}, "service_tier"),
    ({"logit_bias": {}}, "logit_bias"),
]


@pytest.mark.parametrize(("settings", "name"), WRONG)
def test_wrong_settings_are_refused(client, settings, name):
    """With their path, whatever the provider is."""
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("configure_lm", {"model": "openai/x", **settings}, timeout=60)
    assert raised.value.details["path"] == f"args.{name}"
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("execute_program", {**ARGS, "options": settings}, timeout=60)
    assert raised.value.details["path"] == f"args.options.{name}"


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_headers(client, protocol):
    """Each request has them, also one that LiteLLM sends; they may replace others."""
    with Provider(protocol) as provider:
        provider.configure(client, extra_headers={"X-Title": "My app", "User-Agent": "mine/1"})
        client.call("execute_program", ARGS, timeout=60)
    headers = {name.lower(): value for name, value in provider.headers[0].items()}
    assert (headers["x-title"], headers["user-agent"]) == ("My app", "mine/1")


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"Host": "evil"}, "args.extra_headers"),
        ({"content-length": "1"}, "args.extra_headers"),
        ({"Proxy-Authorization": "x"}, "args.extra_headers"),
        ({"X Y": "1"}, "args.extra_headers"),
        ({"": "1"}, "args.extra_headers"),
        ({"X": "a\r\nY: b"}, "args.extra_headers.X"),
        ({"X": "ü"}, "args.extra_headers.X"),
        ({f"X-{number}": "1" for number in range(65)}, "args.extra_headers"),
    ],
)
def test_headers_that_cannot_be_set(client, headers, path):
    """Those of a connection, and what is no header; values are not shown."""
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("configure_lm", {"model": "openai/x", "extra_headers": headers}, timeout=60)
    assert raised.value.details["path"] == path
    assert "Y: b" not in str(raised.value)


def test_the_version_of_azure(client):
    """It is Azure's; others have no such setting."""
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("configure_lm", {"model": "openai/x", "api_version": "2024-10-21"}, timeout=60)
    assert raised.value.details["path"] == "args.api_version"


def test_the_version_is_sent_to_azure():
    with Provider() as provider, Client.start(flags=["--api-base", provider.url]) as client:
        client.call("create_program", {"id": "qa", "signature": QA}, timeout=60)
        provider.configure(client, model="azure/mine", api_base=provider.url, api_version="2024-10-21")
        assert client.call("execute_program", ARGS, timeout=60)["outputs"] == {"answer": "yes"}
    (path,) = provider.paths
    assert path.endswith("/mine/chat/completions?api-version=2024-10-21")


def test_what_litellm_refuses(client):
    """A setting that the provider lacks is an error of the model, by its name, and nothing is sent without it."""
    with Provider(LiteLLM) as provider:
        provider.configure(client, model="perplexity/sonar", seed=7)
        with pytest.raises(errors.LMError, match="seed"):
            client.call("execute_program", ARGS, timeout=60)
    assert provider.requests == []


def test_the_responses_api(client):
    """model_type responses calls OpenAI's other interface; providers without one are refused."""
    reply = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER}]}
    with Provider() as provider:
        provider.respond = lambda body: (
            200,
            {},
            {"id": "1", "object": "response", "status": "completed", "model": "m", "output": [reply]},
        )
        provider.configure(client, model_type="responses", max_tokens=50)
        assert client.call("execute_program", ARGS, timeout=60)["outputs"] == {"answer": "yes"}
    assert provider.paths == ["/v1/responses"]
    assert provider.requests[0]["max_output_tokens"] == 50
    with Provider(LiteLLM) as other, pytest.raises(errors.InvalidArgs):
        other.configure(client, model_type="responses")


def test_several_completions(client):
    """n requests, with DSPy's temperature unless there is another one; the cache knows them all."""
    numbers = iter(range(100))
    with Provider() as provider:
        provider.respond = lambda body: (200, {}, OpenAI.whole(fields(answer=str(next(numbers)))))
        provider.configure(client, n=3, cache=9)
        run = {**ARGS, "include": ["completions"]}
        first, second = (client.call("execute_program", run, timeout=60) for _ in range(2))
        assert len(provider.requests) == 3
        assert {body["temperature"] for body in provider.requests} == {0.7}
        assert [each["answer"] for each in first["completions"]] == ["0", "1", "2"]
        assert second["completions"] == first["completions"]
        client.call("execute_program", {**run, "options": {"n": 2, "temperature": 0.1}}, timeout=60)
        assert [body["temperature"] for body in provider.requests[3:]] == [0.1, 0.1]


SLASHES = [
    ({"provider": "openai", "model": "meta/llama"}, "meta/llama"),
    ({"provider": "openai", "model": "anthropic/claude"}, "anthropic/claude"),
    ({"provider": "openai", "model": "offline/reader"}, "offline/reader"),
    ({"model": "openrouter/openai/gpt-4o"}, "openai/gpt-4o"),
    ({"provider": "groq", "model": "groq/groq/compound"}, "groq/compound"),
    ({"provider": "together_ai", "model": "openai/gpt-oss"}, "openai/gpt-oss"),
    ({"provider": "mistral", "model": "gemini/x"}, "gemini/x"),
]


@pytest.mark.parametrize(("args", "sent"), SLASHES)
def test_names_with_slashes_go_to_the_provider_that_was_named(client, args, sent):
    """The rest of the name is the provider's, whatever it begins with."""
    with Provider() as provider:
        provider.configure(client, **{"model": None, **args})
        client.call("execute_program", ARGS, timeout=60)
    assert [body["model"] for body in provider.requests] == [sent]


def test_the_models_of_a_durable_session_are_restored(start_peer, tmp_path):
    """By name and with their settings, but without keys and headers of the host."""
    store = ("--store", f"sqlite:{tmp_path}/s.db", "--api-key-env", "TEAM_KEY")
    env = {"TEAM_KEY": "sk-team-0123456789abcd"}
    first = start_peer(*store, adapter="dspy", env=env)
    assert first.call("create_session", {"session_id": "s", "durable": True})["success"]
    for args in (
        {"name": "local", "model": "offline/reader", "top_p": 0.5, "stop": ["x"], "adapter": "json", "cache": 3},
        {"name": "own", "model": "openai/x", "api_key": KEY},
        {"name": "headers", "model": "openai/x", "extra_headers": {"X-Key": "hdr-0123456789abcdef"}},
        {"name": "variable", "model": "openai/x", "api_key": {"env": "TEAM_KEY"}},
    ):
        assert first.call("configure_lm", {**args, "session_id": "s"})["success"]
    assert first.call("create_program", {"id": "qa", "signature": QA, "model": "local", "session_id": "s"})["success"]
    first.finish()
    data = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for secret in (KEY, env["TEAM_KEY"], "hdr-0123456789abcdef"):
        assert secret.encode() not in data
    second = start_peer(*store, adapter="dspy", env=env)
    run = {**ARGS, "session_id": "s"}
    assert second.call("execute_program", run)["result"]["model"] == "offline/reader"
    for name in ("own", "headers"):
        failed = second.call("execute_program", {**run, "model": name})
        assert failed["code"] == "lm_not_configured"
        assert "configure_lm again" in failed["error"]
    with Provider() as provider:
        args = {"model": "openai/x", "api_base": provider.url + "/v1", "api_key": KEY, "name": "own"}
        assert second.call("configure_lm", {**args, "session_id": "s"})["success"]
        assert second.call("execute_program", {**run, "model": "own"})["success"]


def test_the_key_of_a_variable_is_read_again_after_a_restart(start_peer, tmp_path):
    """If the operator still allows it: it may have changed, and must not go where it did not go before."""
    with Provider() as provider:
        store = ("--store", f"sqlite:{tmp_path}/s.db", "--api-base", provider.url)
        allowed = (*store, "--api-key-env", "TEAM_KEY")
        first = start_peer(*allowed, adapter="dspy", env={"TEAM_KEY": "sk-team-0123456789abcd"})
        assert first.call("create_session", {"session_id": "s", "durable": True})["success"]
        settings = {"model": "openai/x", "api_base": f"{provider.url}/v1", "api_key": {"env": "TEAM_KEY"}}
        for command, args in (("configure_lm", settings), ("create_program", {"id": "qa", "signature": QA})):
            assert first.call(command, {**args, "session_id": "s"})["success"]
        first.finish()
        run = {**ARGS, "session_id": "s"}
        second = start_peer(*allowed, adapter="dspy", env={"TEAM_KEY": "sk-team-fedcba9876543210"})
        assert second.call("execute_program", run)["success"]
        assert provider.headers[0]["Authorization"] == "Bearer sk-team-fedcba9876543210"
        second.finish()
        third = start_peer(*store, adapter="dspy", env={"TEAM_KEY": "sk-team-fedcba9876543210"})
        assert third.call("execute_program", run)["success"] is False
    assert len(provider.requests) == 1
