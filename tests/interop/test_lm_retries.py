"""Failed requests to a model: which are sent again, what ends the wait, and the caller's error.
No time is measured: requests are counted, and a wait that does not end is a timeout of the test."""

from __future__ import annotations

import datetime
import email.utils
import json
import socket
import threading

import pytest

from bridge import Client, errors
from bridge.adapters.dspy.settings import LMSettings, Model, StoredSettings
from model_server import KEY, PROTOCOLS, LiteLLM, ModelServer, OpenAI
from openai_server import fields
from peer import wait_until

ANSWER = OpenAI.whole(fields(a="1"))
FAILED = {"error": {"message": "not now", "type": "failed", "code": "failed"}}


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
        client.call("create_program", {"id": "p", "signature": signature}, timeout=60)
        yield client


def configure(client, url, protocol=OpenAI, **settings):
    settings = {"retry_wait": 0, **settings}
    model = {"model": protocol.model, "api_base": url + protocol.path, "api_key": KEY}
    client.call("configure_lm", {**model, **settings}, timeout=60)


ARGS = {"program_id": "p", "inputs": {"q": "?"}}


def failing(times, status=503, headers=None, answer=ANSWER):
    """Fail that often, then answer."""
    left = iter(range(times))

    def respond(body):
        return (status, headers or {}, FAILED) if next(left, None) is not None else (200, {}, answer)

    return respond


def counters(client):
    return client.stats()["commands"]["execute_program"]["counters"]


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_transient_failures_are_tried_again(client, protocol, status):
    """Two retries by default, and libraries add none."""
    answer = protocol.whole(fields(a="1"))
    with ModelServer(failing(2, status, answer=answer)) as server:
        configure(client, server.url, protocol)
        before = counters(client) if "execute_program" in client.stats()["commands"] else {}
        assert client.call("execute_program", ARGS, timeout=60)["outputs"] == {"a": "1"}
        assert len(server.requests) == 3
        after = counters(client)
        for name, amount in {"lm_calls": 3, "lm_errors": 2, "lm_retries": 2}.items():
            assert after[name] - before.get(name, 0) == amount
        server.respond = failing(100, status)
        with pytest.raises(errors.LMError) as raised:
            client.call("execute_program", ARGS, timeout=60)
        assert len(server.requests) == 6
    assert raised.value.details["status"] == status
    assert raised.value.details["attempts"] == 3


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 413, 422])
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_refused_requests_are_not_tried_again(client, protocol, status):
    """They would be refused again."""
    with ModelServer(failing(100, status)) as server:
        configure(client, server.url, protocol)
        with pytest.raises(errors.LMError) as raised:
            client.call("execute_program", ARGS, timeout=60)
        assert len(server.requests) == 1
    assert raised.value.details["status"] == status
    assert "attempts" not in raised.value.details


@pytest.mark.parametrize("protocol", [OpenAI, LiteLLM], ids=lambda protocol: protocol.__name__)
def test_retries_can_be_chosen(client, protocol):
    with ModelServer(failing(100)) as server:
        for retries, requests in ((0, 1), (1, 2), (4, 5)):
            server.requests.clear()
            configure(client, server.url, protocol, retries=retries)
            with pytest.raises(errors.LMError):
                client.call("execute_program", ARGS, timeout=60)
            assert len(server.requests) == requests


@pytest.mark.parametrize("protocol", [OpenAI, LiteLLM], ids=lambda protocol: protocol.__name__)
def test_a_connection_that_breaks_is_tried_again(client, protocol):
    with ModelServer(lambda body: None) as server:
        configure(client, server.url, protocol)
        with pytest.raises(errors.LMError) as raised:
            client.call("execute_program", ARGS, timeout=60)
        # A connection that was left open by an earlier request is tried once more at once.
        assert 3 <= len(server.requests) <= 4
    assert raised.value.details["attempts"] == 3


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
def test_an_unreachable_address_is_reported_at_once(client, protocol):
    """It is not tried again: each wait would be an hour."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        configure(client, url, protocol, retries=10, retry_wait=60, retry_cap=600)
        with pytest.raises(errors.LMError) as raised:
            client.call("execute_program", ARGS, timeout=60)
    assert raised.value.details["lm_code"] == "transport"
    assert "attempts" not in raised.value.details


@pytest.mark.parametrize("protocol", [OpenAI, LiteLLM], ids=lambda protocol: protocol.__name__)
def test_a_timeout_of_the_model_is_not_tried_again(client, protocol):
    go_on = threading.Event()
    with ModelServer(lambda body: go_on.wait(30) and (200, {}, ANSWER)) as server:
        configure(client, server.url, protocol, timeout=0.5, retries=10)
        with pytest.raises(errors.LMError):
            client.call("execute_program", ARGS, timeout=60)
        go_on.set()
        assert len(server.requests) == 1


def far_future():
    return email.utils.format_datetime(datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC), usegmt=True)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.__name__)
@pytest.mark.parametrize("hint", ["3600", far_future()])
def test_a_long_retry_after_reaches_the_caller_at_once(client, protocol, hint):
    """No thread sleeps for an hour."""
    with ModelServer(failing(100, 429, {"Retry-After": hint})) as server:
        configure(client, server.url, protocol)
        with pytest.raises(errors.LMError) as raised:
            client.call("execute_program", ARGS, timeout=60)
        assert len(server.requests) == 1
    details = raised.value.details
    assert details["retry_after"] >= 3599
    assert details["status"] == 429
    assert raised.value.recovery == "backoff_retry"


@pytest.mark.parametrize(
    "hint", ["0", "0.01", "-5", "soon", "", "nan", "inf", "1e400", "Thu, 01 Jan 1970 00:00:00 GMT"]
)
def test_other_values_of_retry_after(client, hint):
    """A short wait is respected, and an invalid one is ignored."""
    with ModelServer(failing(2, 429, {"Retry-After": hint})) as server:
        configure(client, server.url)
        assert client.call("execute_program", ARGS, timeout=60)["outputs"] == {"a": "1"}
        assert len(server.requests) == 3


def test_a_retry_after_the_deadline_is_an_error_at_once(client):
    """It is lm_error with the provider's message, not deadline_exceeded after a wait."""
    with ModelServer(failing(100, 429, {"Retry-After": "300"})) as server:
        configure(client, server.url, retry_cap=600)
        with pytest.raises(errors.LMError) as raised:
            client.call("execute_program", ARGS, timeout=100)
        assert len(server.requests) == 1
    assert raised.value.details["retry_after"] == 300


def waiting(server):
    """Return whether the first attempt has failed, so that the worker waits."""
    return len(server.requests) == 1


def test_the_wait_ends_with_cancel(client):
    with ModelServer(failing(100, 429, {"Retry-After": "500"})) as server:
        configure(client, server.url, retry_cap=600)
        stream = client.stream("execute_program", ARGS)
        for _, data in stream:
            if data["status"] == "lm_retry":
                break
        assert data["wait"] == 500
        assert stream.cancel()
        with pytest.raises(errors.Cancelled):
            stream.result(30)
        wait_until(lambda: client.stats()["threads_lost"] == 0)
        assert waiting(server)


def test_the_wait_ends_when_the_worker_stops():
    """Its host ends while a call waits, and the process ends."""
    with ModelServer(failing(100, 429, {"Retry-After": "500"})) as server:
        client = Client.start()
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
        client.call("create_program", {"id": "p", "signature": signature}, timeout=60)
        configure(client, server.url, retry_cap=600)
        stream = client.stream("execute_program", ARGS)
        events = iter(stream)  # a loop that owned it would end the call
        for _, data in events:
            if data["status"] == "lm_retry":
                break
        else:
            pytest.fail(f"no retry: {stream.result()}")
        client.stop()
        assert waiting(server)


def test_a_stream_has_an_event_for_each_attempt(client):
    """Text that was not streamed yet is streamed once."""
    events = OpenAI.events(["[[ ## a ## ]]\n", "one", " two"])
    with ModelServer(failing(2, 503, answer=events)) as server:
        configure(client, server.url)
        stream = client.stream("execute_program", ARGS)
        told = list(stream)
        assert stream.result()["outputs"] == {"a": "one two"}
    called = ("status", {"status": "lm_call", "model": OpenAI.model})
    retries = [
        (
            "status",
            {
                "status": "lm_retry",
                "model": OpenAI.model,
                "attempt": attempt,
                "wait": 0,
                "lm_code": "server",
            },
        )
        for attempt in (2, 3)
    ]
    assert told[:5] == [called, retries[0], called, retries[1], called]
    assert "".join(data["text"] for event, data in told if event == "chunk") == "one two"


def test_a_request_is_not_repeated_after_a_chunk(client):
    """A stream that breaks off in the middle is an error."""
    events = OpenAI.events(["[[ ## a ## ]]\n", "one", " two"])[:2]
    with ModelServer(lambda body: (200, {}, events)) as server:
        configure(client, server.url)
        stream = client.stream("execute_program", ARGS)
        chunks = [data["text"] for event, data in stream if event == "chunk"]
        with pytest.raises(errors.LMError):
            stream.result()
        assert chunks == ["one"]
        assert len(server.requests) == 1


def test_attempts_are_logged_at_debug(start_peer):
    """Each attempt is one line with the call's id; at INFO there is none."""
    with ModelServer(failing(1)) as server:
        peer = start_peer("--log-level", "DEBUG", adapter="dspy")
        base = {"api_base": server.url + OpenAI.path, "api_key": KEY, "retry_wait": 0}
        assert peer.call("configure_lm", {"model": OpenAI.model, **base})["success"]
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
        assert peer.call("create_program", {"id": "p", "signature": signature})["success"]
        assert peer.call("execute_program", ARGS, 7, timeout_ms=60_000)["success"]
        peer.close_input()
        peer.wait()
    logged = [json.loads(line) for line in peer.stderr().splitlines()]
    lines = [line for line in logged if line["logger"] == "bridge.lm"]
    assert [line["request_id"] for line in lines] == [7, 7, 7]
    assert "attempt 1 failed" in lines[0]["message"]
    assert "attempt 2 in" in lines[1]["message"]
    assert "attempt 2: stop" in lines[2]["message"]


def test_settings_of_retries_are_stored():
    """A durable session is restored with them."""
    settings = LMSettings("x", "openai/x", retries=7, retry_wait=0.25, retry_cap=3.0)
    assert StoredSettings.of(Model(settings)).restored(None).settings == settings
