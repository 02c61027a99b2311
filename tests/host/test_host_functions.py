"""Functions of the host that are no tools: models, metrics, rewards and embedders."""

from __future__ import annotations

import asyncio
import functools
import threading
from types import SimpleNamespace

import numpy
import pytest

from asking_worker import AskingWorker
from bridge import Client, aio, errors
from client_uses import HANG
from looped_client import LOOPS, LoopThread

MESSAGES = [{"role": "user", "content": "Where?"}]


@pytest.fixture(params=["threads", *LOOPS])
def host(request, tmp_path):
    """Return a client of each kind, whose worker calls it: ask(command, **args) returns the frames that it sends."""
    worker = AskingWorker(tmp_path / "s")
    thread = None if request.param == "threads" else LoopThread(LOOPS[request.param])
    make = Client.connect if thread is None else functools.partial(thread.start, aio.Client.connect)
    client = make(address=worker.address, format="json")

    def ask(command, **args):
        return client.call("ask", {"command": command, "args": args})

    yield SimpleNamespace(client=client, ask=ask, worker=worker, is_async=thread is not None)
    client.kill()
    if thread is not None:
        thread.close()
    worker.close()


def result(frames):
    (reply,) = frames
    assert reply["success"], reply
    return reply["result"]


def test_a_function_takes_the_parts_of_the_request_that_it_names(host):
    """A part that the request lacks is None, or the parameter's default; `request` is all of it."""
    seen = []

    def plain(messages, tools, stream=False, other=3):
        seen.append((messages, tools, stream, other))
        return "plain"

    def whole(request):
        seen.append(request)
        return {"text": "whole", "usage": {"input_tokens": 3}}

    def rest(messages, **more):
        seen.append((messages, more))
        return "rest"

    bound = functools.partial(plain, stream="bound")
    host.client.register(models={"plain": plain, "whole": whole, "rest": rest, "bound": bound})
    args = {"messages": MESSAGES, "settings": {"temperature": 0.5}, "session_id": "ann"}
    assert result(host.ask("call_model", name="plain", stream=True, **args)) == "plain"
    assert result(host.ask("call_model", name="whole", **args)) == {"text": "whole", "usage": {"input_tokens": 3}}
    assert result(host.ask("call_model", name="rest", **args)) == "rest"
    assert result(host.ask("call_model", name="bound", stream=True, **args)) == "plain"
    more = {key: args[key] for key in ("settings", "session_id")}
    assert seen == [(MESSAGES, None, True, 3), args, (MESSAGES, more), (MESSAGES, None, "bound", 3)]


def test_metrics_rewards_and_embedders(host):
    """They return what the worker checks: numbers, booleans, maps, and vectors as lists or arrays."""
    host.client.register(
        metrics={
            "same": lambda expected, outputs: expected == outputs,
            "judged": lambda inputs, trace=None: {"score": 0.5, "feedback": f"{inputs} {trace}"},
        },
        rewards={"length": lambda outputs: len(outputs["answer"])},
        embedders={"ones": lambda texts: numpy.ones((len(texts), 2)).tolist()},
    )
    scored = {"inputs": {"q": "1"}, "expected": {"answer": "a"}, "outputs": {"answer": "a"}}
    assert result(host.ask("call_metric", name="same", **scored)) is True
    assert result(host.ask("call_metric", name="judged", trace=[], **scored))["feedback"] == "{'q': '1'} []"
    assert result(host.ask("call_reward", name="length", inputs={}, outputs={"answer": "abc"})) == 3
    assert result(host.ask("call_embedder", name="ones", texts=["a", "b"])) == [[1, 1], [1, 1]]


def test_pieces_of_a_reply_are_sent_as_they_come(host):
    """Maps among them belong to the reply. Without `stream` the reply alone is sent."""

    def stream(messages):
        yield "in "
        yield ""
        yield "Paris"
        yield {"usage": {"output_tokens": 2}, "finish_reason": "stop"}

    host.client.register(models={"m": stream})
    whole = {"text": "in Paris", "usage": {"output_tokens": 2}, "finish_reason": "stop"}
    *chunks, reply = host.ask("call_model", name="m", messages=MESSAGES, stream=True)
    assert chunks == [{"event": "chunk", "data": {"text": text}} for text in ("in ", "Paris")]
    assert reply["result"] == whole
    assert result(host.ask("call_model", name="m", messages=MESSAGES, stream=False)) == whole


def test_async_functions_and_iterators(host):
    """They are for bridge.aio; the other client refuses them when they are declared."""

    async def complete(messages):
        await asyncio.sleep(0)
        return "complete"

    async def stream(messages):
        for text in ("a", "b"):
            await asyncio.sleep(0)
            yield text

    async def opened(messages):
        return stream(messages)

    def hidden(messages):
        return stream(messages)

    functions = {"complete": complete, "stream": stream, "opened": opened}
    if not host.is_async:
        for name, function in functions.items():
            with pytest.raises(TypeError, match=rf"model {name}: an async function .* use bridge.aio"):
                host.client.register(models={name: function})
        return
    host.client.register(models={**functions, "hidden": hidden})
    assert result(host.ask("call_model", name="complete", messages=MESSAGES, stream=True)) == "complete"
    for name in ("stream", "opened", "hidden"):
        *chunks, reply = host.ask("call_model", name=name, messages=MESSAGES, stream=True)
        assert [chunk["data"]["text"] for chunk in chunks] == ["a", "b"]
        assert reply["result"] == {"text": "ab"}


def test_a_stream_ends_with_the_call_that_needs_it(host):
    """Its generator is closed, on a thread and in the loop."""
    closed, began = threading.Event(), threading.Event()

    def endless():
        try:
            while True:
                yield "more "
                began.set()
        finally:
            closed.set()

    async def endless_async():
        try:
            while True:
                yield "more "
                began.set()
                await asyncio.sleep(0)
        finally:
            closed.set()

    host.client.register(models={"m": endless, **({"a": endless_async} if host.is_async else {})})
    for name in ["m", "a"] if host.is_async else ["m"]:
        began.clear(), closed.clear(), host.worker.cancelled.clear()
        args = {"name": name, "messages": MESSAGES, "stream": True}
        call = host.client.submit("ask", {"command": "call_model", "args": args})
        assert began.wait(HANG)
        call.cancel()
        assert closed.wait(HANG)
        assert host.worker.cancelled.wait(HANG)


def test_exceptions_are_reported(host, caplog):
    """The reply has one line, and the code and the details of an error of bridge.errors; the stack is logged."""

    def busy(messages):
        raise errors.LMError("busy", lm_code="rate_limit", retry_after=2.0, cause=object())

    def breaks(messages):
        yield "a"
        raise ValueError("no more")

    def odd(messages):
        yield 5

    host.client.register(models={"busy": busy, "breaks": breaks, "odd": odd}, metrics={"m": lambda: 1 / 0})
    (reply,) = host.ask("call_model", name="busy", messages=MESSAGES)
    assert (reply["success"], reply["code"], reply["error"]) == (False, "lm_error", "busy")
    *_, reply = host.ask("call_model", name="breaks", messages=MESSAGES, stream=True)
    assert (reply["code"], reply["error"]) == ("handler_error", "ValueError: no more")
    (reply,) = host.ask("call_model", name="odd", messages=MESSAGES)
    assert reply["error"] == "TypeError: a piece of a model's reply must be a text or a map, not int"
    (reply,) = host.ask("call_metric", name="m", expected={}, outputs={})
    assert reply["error"] == "ZeroDivisionError: division by zero"
    assert [record.message for record in caplog.records][-1] == "metric m failed"
    (reply,) = host.ask("call_reward", name="m")
    assert (reply["code"], reply["error"]) == ("unknown_command", "unknown reward 'm'")
    (reply,) = host.ask("call_something", name="m")
    assert reply["error"] == "Unknown command: call_something"


def test_the_details_of_an_error_are_sent(host):
    """A host's model says by them after which time it may be asked again."""

    def busy(messages):
        raise errors.LMError("busy", lm_code="rate_limit", retry_after=2.0)

    host.client.register(models={"m": busy})
    (reply,) = host.ask("call_model", name="m", messages=MESSAGES)
    assert reply["details"] == {"lm_code": "rate_limit", "retry_after": 2.0}


def test_sessions_have_their_own_functions(host):
    """A session has those of the default session, too, but prefers its own."""
    host.client.register(rewards={"who": lambda: 0, "all": lambda: 1})
    host.client.register(rewards={"who": lambda: 2}, session_id="ann")
    assert result(host.ask("call_reward", name="who", session_id="ann")) == 2
    assert result(host.ask("call_reward", name="all", session_id="ann")) == 1
    assert result(host.ask("call_reward", name="who", session_id="default")) == 0


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        (
            {"metrics": {"m": lambda example, pred: 1}},
            "metric m: cannot fill the parameter 'example'; by name there are inputs, exp",
        ),
        ({"models": {"m": lambda messages, /: 1}}, "model m: cannot fill the parameter 'messages'"),
        ({"rewards": {"r": "text"}}, "reward r: expected a function or another callable, not 'text'"),
        ({"rewards": {" ": lambda: 1}}, "rewards: a name must be a text, not ' '"),
        ({"embedders": {3: lambda texts: 1}}, "embedders: a name must be a text, not 3"),
        ({"models": {"m": iter}}, "model m: no signature found"),
        ({"models": [len]}, "models must be a map of names to functions"),
    ],
)
def test_what_cannot_be_called_is_refused(host, functions, reason):
    """Nothing is registered then."""
    with pytest.raises(TypeError, match=reason):
        host.client.register(**functions)
