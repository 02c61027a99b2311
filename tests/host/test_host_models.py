"""Models and rewards of the host, asked by a real worker: replies at once and in pieces, errors, cancelling."""

from __future__ import annotations

import asyncio
import threading

import pytest

from bridge import errors
from client_uses import HANG

QUESTION = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
RUN = {"program_id": "p", "inputs": {"question": "Where?"}, "model": "host/mine"}


@pytest.fixture(scope="module")
def clients(start_client):
    with start_client(timeout=60.0) as client:
        client.call("create_program", {"id": "p", "signature": QUESTION}, timeout=60)
        yield client


def test_a_model_answers(clients):
    """It gets the prompt and the settings; its usage is that of the call."""
    seen = []

    def complete(messages, settings, stream):
        seen.append((messages[-1]["role"], "Where?" in str(messages), settings, stream))
        return {"text": "[[ ## answer ## ]]\nin Paris", "usage": {"input_tokens": 7, "output_tokens": 3}}

    clients.register(models={"mine": complete})
    args = {**RUN, "options": {"temperature": 0.5}, "include": ["usage"]}
    result = clients.call("execute_program", args, timeout=60)
    assert result["outputs"] == {"answer": "in Paris"}
    assert result["model"] == "host/mine"
    assert (result["usage"][0]["input_tokens"], result["usage"][0]["output_tokens"]) == (7, 3)
    assert seen == [("user", True, {"temperature": 0.5}, False)]


@pytest.mark.parametrize("is_async", [False, True])
def test_pieces_are_streamed(clients, is_async):
    """A caller that wants events gets the text as it comes."""

    def pieces(messages):
        yield from ("[[ ## answer ## ]]\n", "in ", "Par", "is")

    async def pieces_later(messages):
        for piece in pieces(messages):
            await asyncio.sleep(0)
            yield piece

    if is_async and not hasattr(clients, "_thread"):
        pytest.skip("async functions are for bridge.aio")
    clients.register(models={"mine": pieces_later if is_async else pieces})
    with clients.stream("execute_program", RUN) as stream:
        chunks = [data["text"] for event, data in stream if event == "chunk"]
    assert "".join(chunks) == "in Paris"
    assert len(chunks) > 1
    assert clients.call("execute_program", RUN, timeout=60)["outputs"] == {"answer": "in Paris"}


def test_a_failing_model_is_asked_again_or_replaced(clients):
    """By its error's details, as by the status of a provider."""
    asked = []

    def busy(messages):
        asked.append("busy")
        raise errors.LMError("busy", status=503)

    def other(messages):
        asked.append("other")
        return "[[ ## answer ## ]]\nfrom the other"

    clients.register(models={"mine": busy, "other": other})
    clients.call("configure_lm", {"name": "first", "model": "host/mine", "retries": 1, "retry_wait": 0})
    chosen = {**RUN, "model": {"models": ["first", "host/other"]}}
    assert clients.call("execute_program", chosen, timeout=60)["outputs"] == {"answer": "from the other"}
    assert asked == ["busy", "busy", "other"]

    clients.register(models={"mine": lambda: 1 / 0})
    with pytest.raises(errors.LMError, match="division by zero"):
        clients.call("execute_program", RUN, timeout=60)
    with pytest.raises(errors.LMError, match="unknown model 'none'"):
        clients.call("execute_program", {**RUN, "model": "host/none"}, timeout=60)


def test_a_cancelled_run_ends_its_model(clients):
    """The iterator of its pieces is closed."""
    began, closed = threading.Event(), threading.Event()

    def endless(messages):
        try:
            yield "[[ ## answer ## ]]\n"
            while True:
                yield "more "
                began.set()
        finally:
            closed.set()

    clients.register(models={"mine": endless})
    stream = clients.stream("execute_program", RUN)
    for event, _ in stream:
        if event == "chunk":
            break
    stream.close()
    assert closed.wait(HANG)
