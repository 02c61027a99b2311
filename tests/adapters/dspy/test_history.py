"""get_history and inspect_call: the last calls of a session's models."""

from __future__ import annotations

import pytest

from bridge import Client, errors
from bridge.adapters.dspy import history
from model_server import KEY, ModelServer

SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        yield client


@pytest.fixture
def session(client, request):
    """Return a function session(command, **args) that calls a command in a session of its own."""

    def session(command, **args):
        return client.call(command, args, session_id=request.node.name)

    session("create_program", id="p", signature=SIGNATURE)
    return session


def script(session, count, **settings):
    answers = [{"answer": f"answer {number}"} for number in range(1, count + 1)]
    session("configure_lm", provider="scripted", answers=answers, **settings)


def ask(session, question):
    session("execute_program", program_id="p", inputs={"question": question})


def test_it_is_off_by_default(session):
    script(session, 1)
    ask(session, "Where?")
    assert session("get_history") == {"history": []}


def test_the_last_calls_are_kept(session):
    """The newest is last. Each has an id, by which one call is found."""
    script(session, 4, history=3)
    for number in range(1, 5):
        ask(session, f"question {number}")
    calls = session("get_history")["history"]
    assert [call["id"] for call in calls] == [2, 3, 4]
    assert "question 4" in calls[-1]["messages"][-1]["content"]
    assert "answer 4" in calls[-1]["reply"]
    assert calls[-1]["program_id"] == "p"
    assert (calls[-1]["model"], calls[-1]["attempts"], calls[-1]["cached"]) == ("scripted/answers", 1, False)
    assert session("get_history", limit=1)["history"] == calls[-1:]
    assert session("get_history", limit=0)["history"] == []
    inspected = session("inspect_call", id=3)
    text = inspected.pop("text")
    assert inspected == calls[1]
    assert "user:\n\n[[ ## question ## ]]\nquestion 3" in text
    assert text.endswith("reply:\n\n" + calls[1]["reply"])


@pytest.mark.parametrize("call_id", [0, 1, 99, -1])
def test_a_call_that_is_not_kept(session, call_id):
    """An id that is unknown, or not any more."""
    script(session, 2, history=1)
    ask(session, "one")
    ask(session, "two")
    with pytest.raises(errors.InvalidArgs) as caught:
        session("inspect_call", id=call_id)
    assert caught.value.details["path"] == "args.id"


@pytest.mark.parametrize("limit", [-1, 1001, "all", 1.5])
def test_limits_out_of_range(session, limit):
    for command, name in (("get_history", "limit"), ("configure_lm", "history")):
        with pytest.raises(errors.InvalidArgs) as caught:
            session(command, **{name: limit}, **({"provider": "offline"} if name == "history" else {}))
        assert caught.value.details["path"] == f"args.{name}"


def test_it_ends_with_its_session(client):
    """Sessions share no calls, even with the model of all sessions; a new session of that name has none."""
    client.call("configure_lm", {"provider": "offline", "history": 10})
    client.call("create_program", {"id": "p", "signature": SIGNATURE})
    for session_id in ("a", "b"):
        args = {"program_id": "p", "inputs": {"question": f"of {session_id}"}}
        client.call("execute_program", args, session_id=session_id)
    for session_id in ("a", "b"):
        (call,) = client.call("get_history", session_id=session_id)["history"]
        assert f"of {session_id}" in call["messages"][-1]["content"]
    client.call("cleanup_session", session_id="a")
    assert client.call("get_history", session_id="a") == {"history": []}
    client.call("reset_state")
    assert client.call("get_history", session_id="b") == {"history": []}


def test_failures_and_secrets(session):
    """A failed call is in the history, with the code of its error; keys are not."""
    responses = [(429, {}, {"error": {"message": f"too many requests with {KEY}"}})]
    with ModelServer(lambda body: responses[0]) as server:
        session(
            "configure_lm", model="openai/test", api_base=f"{server.url}/v1", api_key=KEY, history=5, retries=1,
            retry_wait=0,
        )  # fmt: skip
        with pytest.raises(errors.LMError):
            ask(session, f"Is {KEY} a key?")
    (call,) = session("get_history")["history"]
    assert (call["attempts"], call["error"], call["reply"]) == (2, "rate_limit", None)
    assert "Is *** a key?" in call["messages"][-1]["content"]
    assert KEY not in str(session("inspect_call", id=call["id"]))
    assert session("inspect_call", id=call["id"])["text"].endswith("error:\n\nrate_limit")


def test_a_reply_that_cannot_be_read(session):
    """It is in the history."""
    session("configure_lm", provider="scripted", answers=["nonsense"], history=5)
    with pytest.raises(errors.LMError):
        ask(session, "?")
    assert [call["reply"] for call in session("get_history")["history"]] == ["nonsense"]


def test_its_size_is_limited(session, monkeypatch):
    """The oldest calls are dropped when all calls together are too large."""

    class Exchange:
        usage, cost, seconds = {}, None, 0.0

        def __init__(self, text):
            self.prompt = {"messages": [], "reply": text}

    monkeypatch.setattr(history, "LARGEST", 5000)
    kept = history.History()
    for number in range(4):
        kept.add(Exchange(str(number) * 2000), None, 100)
    assert [call["id"] for call in kept.calls(10)] == [3, 4]
    kept.add(Exchange("x" * 6000), None, 100)
    assert kept.calls(10) == []
