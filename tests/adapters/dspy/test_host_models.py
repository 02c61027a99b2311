"""Models of the host: the calls that the worker makes, whole and streamed replies, errors, cancel."""

from __future__ import annotations

import pytest

from dspy_requests import QA
from openai_server import fields
from peer import Peer

RUN = {"program_id": "qa", "inputs": {"question": "Why?"}, "model": "host/mine"}


@pytest.fixture(scope="module")
def started():
    """Return a worker whose host has offered to be called."""
    peer = Peer(adapter="dspy")
    assert peer.call("hello", {"offers": {"tools": True}})["success"]
    yield peer
    peer.finish()


@pytest.fixture
def worker(started):
    """Return the worker of the module, with the program qa and no models."""
    assert started.call("cleanup")["success"]
    assert started.call("create_program", {"id": "qa", "signature": QA})["success"]
    return started


def asked(worker, args=RUN, **envelope):
    """Start a run, and return the call of the host that it makes."""
    worker.send({"id": 5, "command": "execute_program", "args": args, **envelope})
    return call_of(worker)


def call_of(worker):
    while "command" not in (message := worker.receive()):
        assert message.get("event") == "status", message
    return message


def reply(worker, call, **reply):
    worker.send({"id": call["id"], **reply})


def answer(worker, call, result):
    """Answer the call, and return the reply to the run."""
    reply(worker, call, success=True, result=result)
    while "success" not in (message := worker.receive()):
        pass
    return message


ANSWER = fields(answer="Because.")


def test_the_call_of_the_host(worker):
    """It has the messages of the prompt and the settings that are set, and no key."""
    settings = {"temperature": 0.5, "stop": "END", "seed": 7, "reasoning_effort": "low"}
    call = asked(worker, {**RUN, "options": settings})
    assert (call["command"], call["call_id"]) == ("call_model", 5)
    args = call["args"]
    assert [message["role"] for message in args["messages"]] == ["system", "user"]
    assert "Why?" in args["messages"][1]["content"]
    expected = {"temperature": 0.5, "stop": ["END"], "seed": 7, "reasoning_effort": "low"}
    assert args["settings"] == expected
    assert (args["name"], args["stream"], args["session_id"]) == ("mine", False, "default")
    assert set(args) == {"name", "messages", "settings", "stream", "session_id"}
    result = answer(worker, call, ANSWER)["result"]
    assert (result["outputs"], result["model"]) == ({"answer": "Because."}, "host/mine")


@pytest.mark.parametrize(
    "result",
    [
        {"text": ANSWER},
        {"text": ANSWER, "usage": {"input_tokens": 3}, "finish_reason": "stop"},
        {"text": ANSWER, "usage": None, "tool_calls": []},
    ],
)
def test_forms_of_the_answer(worker, result):
    """Everything but the text may be missing."""
    assert answer(worker, asked(worker), result)["result"]["outputs"] == {"answer": "Because."}


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"txt": ANSWER}, "txt"),
        (5, "object"),
        (None, "object"),
        ({"text": 5}, "str"),
        ({"text": ANSWER, "finish_reason": "bored"}, "bored"),
        ({"tool_calls": [{"name": "f", "args": "no map"}]}, "not a map"),
        ({"tool_calls": [{"name": "f", "args": '{"a": ' + "[" * 100_000}]}, "not a map"),
    ],
)
def test_answers_that_cannot_be_used(worker, result, reason):
    """The run fails with an error of the model that says why."""
    failed = answer(worker, asked(worker), result)
    assert (failed["code"], failed["details"]["provider"]) == ("lm_error", "host")
    assert reason in failed["error"]


def test_usage_is_counted(worker):
    """As the host reports it."""

    def counters():
        return worker.call("get_stats")["result"]["commands"]["execute_program"]["counters"]

    answer(worker, asked(worker), ANSWER)
    before = counters()
    answer(worker, asked(worker), {"text": ANSWER, "usage": {"input_tokens": 30, "output_tokens": 4}})
    counted = {name: count - before.get(name, 0) for name, count in counters().items()}
    assert counted == {**dict.fromkeys(counted, 0), "lm_calls": 1, "input_tokens": 30, "output_tokens": 4}


def test_a_streamed_reply(worker):
    """Chunks become chunks of the output; the reply needs no text then."""
    call = asked(worker, stream=True)
    assert call["args"]["stream"]
    for piece in (ANSWER[:30], ANSWER[30:]):
        reply(worker, call, event="chunk", data={"text": piece})
    reply(worker, call, success=True, result={"usage": {"output_tokens": 2}})
    texts = []
    while "success" not in (message := worker.receive()):
        texts += [message["data"]["text"]] if message["event"] == "chunk" else []
    assert "".join(texts) == "Because."
    assert message["result"]["outputs"] == {"answer": "Because."}


@pytest.mark.parametrize("text", [ANSWER, ANSWER[:40]])
def test_the_rest_of_a_streamed_reply(worker, text):
    """The text of the reply may be longer than what was streamed."""
    call = asked(worker, stream=True)
    reply(worker, call, event="chunk", data={"text": text})
    assert answer(worker, call, {"text": ANSWER})["result"]["outputs"] == {"answer": "Because."}


@pytest.mark.parametrize(
    ("event", "result"),
    [
        ({"event": "chunk", "data": {"text": "another"}}, {"text": ANSWER}),
        ({"event": "chunk", "data": {"text": 5}}, ANSWER),
        ({"event": "chunk", "data": "text"}, ANSWER),
        ({"event": "chunk"}, ANSWER),
        ({"event": "status", "data": {"text": "x"}}, ANSWER),
    ],
)
def test_events_that_cannot_be_used(worker, event, result):
    """The run fails, and the worker goes on."""
    call = asked(worker, stream=True)
    reply(worker, call, **event)
    assert answer(worker, call, result)["code"] == "lm_error"
    assert worker.is_alive()


def test_events_that_nobody_waits_for(worker):
    """They are ignored: of unknown ids, of calls that do not stream, after the answer."""
    call = asked(worker)
    reply(worker, {"id": "w999"}, event="chunk", data={"text": "x"})
    reply(worker, call, event="chunk", data={"text": "x"})
    assert answer(worker, call, ANSWER)["success"]
    reply(worker, call, event="chunk", data={"text": "x"})
    assert worker.is_alive()


def test_a_stream_without_end_is_bounded(start_peer):
    """All chunks of a call together have at most --max-frame bytes."""
    peer = start_peer("--max-frame", "65536", adapter="dspy")
    peer.call("hello", {"offers": {"tools": True}})
    peer.call("create_program", {"id": "qa", "signature": QA})
    call = asked(peer, stream=True)
    for _ in range(3):
        reply(peer, call, event="chunk", data={"text": "x" * 30_000})
    while "success" not in (message := peer.receive()):
        pass
    assert message["code"] == "lm_error"
    assert "--max-frame" in message["error"]
    assert peer.is_alive()


def failure(**details):
    return {"success": False, "error": "no luck", "code": "lm_error", "details": details}


def test_errors_of_the_host_are_errors_of_the_model(worker):
    """They are not repeated unless their details say that this may help."""
    call = asked(worker)
    reply(worker, call, **failure())
    failed = worker.receive()
    assert (failed["code"], failed["details"]["provider"]) == ("lm_error", "host")
    assert "no luck" in failed["error"]


@pytest.mark.parametrize("details", [{"status": 429, "retry_after": 0}, {"status": 503}, {"retryable": True}])
def test_errors_that_may_pass_are_tried_again(worker, details):
    """As often as the model's `retries` say."""
    args = {"model": "host/mine", "name": "mine", "retries": 1, "retry_wait": 0}
    assert worker.call("configure_lm", args)["success"]
    call = asked(worker, {**RUN, "model": "mine"})
    reply(worker, call, **failure(**details))
    again = call_of(worker)
    assert again["args"] == call["args"]
    assert answer(worker, again, ANSWER)["success"]


def test_another_model_answers_in_its_place(worker):
    """Models of the host and others can be combined."""
    worker.call("configure_lm", {"name": "b", "provider": "scripted", "answers": {"": {"answer": "b"}}})
    worker.call("configure_lm", {"name": "a", "model": "host/mine", "retries": 0})
    call = asked(worker, {**RUN, "model": {"models": ["a", "b"]}})
    reply(worker, call, **failure(status=500))
    assert worker.receive()["result"]["outputs"] == {"answer": "b"}


def test_a_host_that_has_offered_nothing(start_peer):
    """The error names the offer."""
    peer = start_peer(adapter="dspy")
    peer.call("create_program", {"id": "qa", "signature": QA})
    failed = peer.call("execute_program", RUN)
    assert failed["code"] == "not_allowed"
    assert "offers.tools" in failed["error"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_run_that_is_cancelled_waits_no_longer(worker, stream):
    """Its late answer is ignored."""
    call = asked(worker, stream=stream)
    worker.send({"id": 6, "command": "cancel", "args": {"id": 5}})
    replies = {}
    while len(replies) < 2:
        message = worker.receive()
        replies |= {message["id"]: message} if "success" in message else {}
    assert replies[5]["code"] == "cancelled"
    reply(worker, call, success=True, result=ANSWER)
    assert worker.is_alive()


@pytest.mark.parametrize("setting", [{"api_key": "k"}, {"api_base": "http://127.0.0.1"}, {"extra_headers": {"a": "b"}}])
def test_keys_do_not_enter_the_worker(worker, setting):
    """The host has its own connection."""
    failed = worker.call("configure_lm", {"model": "host/mine", **setting})
    (name,) = setting
    assert (failed["code"], failed["details"]["path"]) == ("invalid_args", f"args.{name}")


def test_answers_of_the_host_are_cached(worker):
    """Like those of any model."""
    worker.call("configure_lm", {"model": "host/mine", "name": "mine", "cache": 5})
    run = {**RUN, "model": "mine"}
    assert answer(worker, asked(worker, run), ANSWER)["success"]
    assert worker.call("execute_program", run)["result"]["outputs"] == {"answer": "Because."}
