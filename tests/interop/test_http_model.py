"""A real worker, a real provider's protocol: HTTP on loopback through dspy.LM."""

from __future__ import annotations

import json
import threading

import dspy
import pytest

from bridge import Client, errors
from openai_server import HTTPFault, OpenAIServer, fields

SIGNATURE = {
    "inputs": [{"name": "question"}],
    "outputs": [{"name": "answer"}, {"name": "score", "type": "float"}],
}
KEY = "sk-loopback-0123456789"


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        client.call("create_program", {"id": "qa", "signature": SIGNATURE}, timeout=60)
        yield client


def configure(client, server, **more):
    client.call(
        "configure_lm",
        {"model": "openai/test-model", "api_base": server.url, "api_key": KEY, **more},
    )


def execute(client, question="?", **more):
    args = {"program_id": "qa", "inputs": {"question": question}, **more}
    return client.call("execute_program", args)


def test_a_round_trip_over_http(client):
    """One request has the key, the model and the settings, and the outputs have their types."""
    with OpenAIServer(lambda prompt: fields(answer="42", score="0.5")) as server:
        configure(client, server, temperature=0.25, max_tokens=77)
        assert not server.requests, "configure_lm must not call the model"
        result = execute(client, "what?")
        assert result["outputs"] == {"answer": "42", "score": 0.5}
        assert result["model"] == "openai/test-model"
        execute(client, "what?", options={"temperature": 0.75})
    (headers, first), (_, second) = server.requests
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (first["model"], first["temperature"]) == ("test-model", 0.25)
    assert first["max_completion_tokens"] == 77
    assert "what?" in first["messages"][-1]["content"]
    assert second["temperature"] == 0.75, "and the equal question was asked again: no cache"


@pytest.mark.parametrize("exempt", ["", "127.0.0.1"])
def test_a_proxy_of_the_environment(exempt):
    """Requests go through the proxy, the first and later ones, unless NO_PROXY exempts the address."""
    with (
        OpenAIServer(lambda prompt: fields(answer="direct", score="1")) as server,
        OpenAIServer(lambda prompt: fields(answer="proxy", score="1")) as proxy,
        Client.start(env={"http_proxy": proxy.url, "no_proxy": exempt}) as client,
    ):
        configure(client, server)
        client.call("create_program", {"id": "qa", "signature": SIGNATURE}, timeout=60)
        answers = [execute(client)["outputs"]["answer"] for _ in range(3)]
    assert answers == ["direct" if exempt else "proxy"] * 3


def test_provider_errors_carry_what_a_host_needs(client):
    """They have the status and whether and when to try again, but never the key."""

    def limited(prompt):
        raise HTTPFault(429, "slow down", Retry_After="0")

    with OpenAIServer(limited) as server:
        configure(client, server)
        with pytest.raises(errors.LMError) as raised:
            execute(client)
    assert raised.value.details["status"] == 429
    assert raised.value.recovery == "backoff_retry"
    assert KEY not in str(raised.value)

    def refused(prompt):
        raise HTTPFault(401, f"Incorrect API key provided: {KEY}")

    with OpenAIServer(refused) as server:
        configure(client, server)
        with pytest.raises(errors.LMError) as raised:
            execute(client)
    assert raised.value.details["status"] == 401
    assert raised.value.recovery == "abandon"
    assert KEY not in str(raised.value) + str(raised.value.details)


def test_slow_answers_do_not_delay_other_calls(client):
    """32 calls of half a second run at once, and ping is answered meanwhile."""
    with OpenAIServer(lambda prompt: fields(answer=prompt[30:40], score="1"), 0.5) as server:
        configure(client, server)
        results = []
        threads = [threading.Thread(target=lambda i=i: results.append(execute(client, str(i)))) for i in range(32)]
        for thread in threads:
            thread.start()
        open_calls = client.stats()["in_flight"]
        for thread in threads:
            thread.join()
    assert open_calls > 1
    assert len(results) == 32


def test_streaming_over_http():
    """DSPy's native engine reads the same server's event stream, word by word."""
    with OpenAIServer(lambda prompt: "one two three") as server:
        lm = dspy.LM("openai/test-model", api_base=server.url, api_key=KEY, cache=False)
        program = dspy.Predict(
            dspy.make_signature(
                {"question": (str, dspy.InputField()), "answer": (str, dspy.OutputField())},
                "Answer.",
            )
        )
        stream = dspy.streamify(program, async_streaming=False)
        server.answer = lambda prompt: fields(answer="one two three")
        with dspy.context(lm=lm, trace=None, disable_history=True):
            *chunks, prediction = stream(question="?")
        lm.close()
    assert prediction.answer == "one two three"
    assert len(chunks) > 2
    assert server.requests[0][1]["stream"] is True


def test_a_provider_that_only_litellm_knows(start_peer):
    """Stops, streams and counts like all others, and its key stays out of its logs; a library's
    own log lines are JSON with the call's id."""
    peer = start_peer(adapter="dspy")
    with OpenAIServer(lambda prompt: fields(answer="one two", score="1")) as server:
        server.finish_reason = "length"
        args = {"model": "together_ai/some/model", "api_base": server.url, "api_key": KEY}
        assert peer.call("configure_lm", args)["success"]
        assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
        run = {"program_id": "qa", "inputs": {"question": "?"}}
        reply = peer.call("execute_program", run, 5, timeout_ms=60_000)
        assert reply["result"]["outputs"] == {"answer": "one two", "score": 1.0}
        peer.send({"id": 6, "command": "execute_program", "args": run, "stream": True})
        frames = [peer.receive()]
        while "success" not in frames[-1]:
            frames.append(peer.receive())
        assert frames[-1]["result"]["outputs"]["answer"] == "one two"
        chunks = [each["data"] for each in frames if each.get("event") == "chunk"]
        answer = "".join(each["text"] for each in chunks if each["field"] == "answer")
        assert answer == "one two"
        assert len(chunks) > 2

        def refused(prompt):
            raise HTTPFault(401, f"Incorrect API key provided: {KEY}")

        server.answer = refused
        failed = peer.call("execute_program", run, 7)
        assert (failed["code"], failed["details"]["status"]) == ("lm_error", 401)
        assert KEY not in json.dumps(failed)
    assert [body["model"] for _, body in server.requests] == ["some/model"] * 3
    assert {headers["Authorization"] for headers, _ in server.requests} == {f"Bearer {KEY}"}
    peer.close_input()
    peer.wait()
    stderr = peer.stderr()
    assert KEY not in stderr
    lines = [json.loads(line) for line in stderr.splitlines()]
    (first, *_) = [line for line in lines if line["logger"] == "dspy.clients.lm"]
    assert "truncated" in first["message"]
    assert (first["request_id"], first["command"]) == (5, "execute_program")
