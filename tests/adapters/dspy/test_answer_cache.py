"""`cache` of configure_lm: which answers are cached, for which session; and the counters of requests to models."""

from __future__ import annotations

import itertools
import json

import pytest

from bridge import listen
from bridge._framing import Frame, Outbox
from bridge.adapters.dspy.answer_cache import AnswerCache, key_of

SIGNATURE = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}


@pytest.fixture
def call(dispatcher):
    """Return a function call(command, session, **args) that returns the whole reply."""
    ids = itertools.count(1)

    def call(command, session="s", **args):
        request = {"id": next(ids), "command": command, "args": args}
        if session:
            request["session_id"] = session
        return json.loads(dispatcher.call(json.dumps(request).encode(), 60))

    return call


@pytest.fixture
def ask(call):
    """Return a function ask(question, session, **more): the answer of the program p, or the error's code."""

    def ask(question, session="s", **more):
        inputs = {"q": question}
        reply = call("execute_program", session, program_id="p", inputs=inputs, **more)
        return reply["result"]["outputs"]["a"] if reply["success"] else reply["code"]

    return ask


@pytest.fixture
def counters(dispatcher):
    return lambda: dispatcher.commands["execute_program"].recorder.counters


def script(call, count, session="s", **args):
    """Return a function that installs a model that counts its answers, and creates the program p."""
    answers = [{"a": str(number)} for number in range(1, count + 1)]
    reply = call("configure_lm", session, provider="scripted", answers=answers, **args)
    assert reply["success"], reply
    call("create_program", session or "default", id="p", signature=SIGNATURE)


def test_an_equal_request_is_answered_from_the_cache(call, ask, counters):
    """An equal request does not reach the model; another question, setting or type does."""
    script(call, 9, cache=10)
    assert [ask("x"), ask("x"), ask("y"), ask("x"), ask("y")] == ["1", "1", "2", "1", "2"]
    assert ask("x", options={"temperature": 0.7}) == "3"
    assert ask("x", options={"temperature": 0.7}) == "3"
    assert ask("x", options={"max_tokens": 7}) == "4"
    call("create_program", id="p2", signature={**SIGNATURE, "description": "Otherwise."})
    assert call("execute_program", program_id="p2", inputs={"q": "x"})["result"]["outputs"] == {"a": "5"}
    assert (counters()["lm_calls"], counters()["cache_hits"]) == (5, 4)


def test_nothing_is_cached_by_default(call, ask, counters):
    """The default of `cache` is 0."""
    script(call, 2)
    assert [ask("x"), ask("x")] == ["1", "2"]
    assert "cache_hits" not in counters()


@pytest.mark.parametrize("cache", [-1, 100_001, "many", 1.5])
def test_a_cache_out_of_bounds(call, cache):
    """A size out of bounds is invalid_args with the path."""
    reply = call("configure_lm", provider="offline", cache=cache)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.cache")


def test_the_least_recently_used_answer_is_dropped(call, ask):
    """The cache never has more answers than its size."""
    script(call, 9, cache=2)
    assert [ask("x"), ask("y"), ask("x"), ask("z")] == ["1", "2", "1", "3"]
    assert [ask("x"), ask("y")] == ["1", "4"]


def test_sessions_share_no_answers(call, ask):
    """Sessions share neither answers of equal settings nor those of the worker's own model."""
    for session in ("a", "b"):
        script(call, 9, session, cache=5)
    assert [ask("x", "a"), ask("x", "a"), ask("y", "b"), ask("x", "b")] == ["1", "1", "1", "2"]
    script(call, 9, None, cache=5)
    call("create_program", "c", id="p", signature=SIGNATURE)
    call("create_program", "d", id="p", signature=SIGNATURE)
    assert [ask("x", "c"), ask("x", "c"), ask("x", "d"), ask("x", "d")] == ["1", "1", "2", "2"]


def test_equal_models_share_no_answers(call, ask, dispatcher):
    """The offline reader is one object for all equal settings, but each session has its own answers."""
    from bridge.adapters.dspy.models import connect

    for session in ("a", "b"):
        call("configure_lm", session, provider="offline", cache=5)
        call("create_program", session, id="p", signature=SIGNATURE)
    a, b = (dispatcher.sessions.open(session).state for session in ("a", "b"))
    assert connect(a.model({}), {}) is connect(b.model({}), {})
    assert ask("x", "a") == ask("x", "b")
    counters = dispatcher.commands["execute_program"].recorder.counters
    assert (counters["lm_calls"], counters.get("cache_hits", 0)) == (2, 0)


def test_a_new_session_or_model_begins_with_an_empty_cache(call, ask):
    """This includes a new session with an old id."""
    script(call, 9, None, cache=5)
    call("create_program", "c", id="p", signature=SIGNATURE)
    assert [ask("x", "c"), ask("x", "c")] == ["1", "1"]
    call("cleanup_session", "c")
    call("create_program", "c", id="p", signature=SIGNATURE)
    assert ask("x", "c") == "2"
    script(call, 9, "c", cache=5)
    assert [ask("x", "c"), ask("x", "c")] == ["1", "1"]
    script(call, 9, "c", cache=5)
    assert ask("z", "c") == "1"


def test_errors_are_not_cached(call, ask, counters):
    """Neither errors of the model nor answers that the program could not use are cached."""
    answers = ["not in the format", {"a": "good"}]
    call("configure_lm", provider="scripted", answers=answers, cache=5)
    call("create_program", id="p", signature=SIGNATURE)
    assert [ask("x"), ask("x"), ask("x")] == ["lm_error", "good", "good"]
    assert ask("y") == "lm_error", "all answers are used up"
    assert (counters()["lm_calls"], counters()["lm_errors"], counters()["cache_hits"]) == (3, 1, 1)


def test_a_cached_answer_streams(call, dispatcher):
    """The fields of a cached answer are sent as chunks, after a status `cache_hit`."""
    script(call, 2, cache=5)
    streams = []
    for request_id in (101, 102):
        frames = []
        request = {
            "id": request_id,
            "command": "execute_program",
            "session_id": "s",
            "stream": True,
            "args": {"program_id": "p", "inputs": {"q": "x"}},
        }
        deliver = frames.append
        frame = Frame.of(json.dumps(request).encode())
        dispatcher.path.answer(frame, Outbox(), deliver)
        while not frames or b'"success"' not in frames[-1].payload():
            pass
        streams.append([json.loads(each.payload()) for each in frames])
    for stream, status in zip(streams, ("lm_call", "cache_hit"), strict=True):
        assert stream[0]["data"] == {"status": status, "model": "scripted/answers"}
        chunks = [each["data"] for each in stream if each.get("event") == "chunk"]
        assert {each["field"] for each in chunks} == {"a"}
        assert "".join(each["text"] for each in chunks) == "1"
        assert stream[-1]["result"]["outputs"] == {"a": "1"}


def test_requests_to_models_are_counted(call, ask, counters):
    """Counts include tokens, and the price if DSPy knows it; a cache hit is not a request."""

    class Listener:
        def __init__(self):
            self.told = []

        def started(self, activity):
            pass

        def complete(self, activity):
            if activity.kind == "lm":
                self.told.append(activity.facts)

        def failed(self, activity, error):
            if activity.kind == "lm":
                self.told.append(type(error).__name__)

    script(call, 1, cache=5)
    listener = Listener()
    stop = listen(listener)
    try:
        assert [ask("x"), ask("x"), ask("y")] == ["1", "1", "lm_error"]
    finally:
        stop()
    told, failed = listener.told
    assert (told["provider"], told["model"], told["finish_reason"]) == (
        "scripted",
        "answers",
        "stop",
    )
    assert told["input_tokens"] == counters()["input_tokens"] > 0
    assert told["output_tokens"] == counters()["output_tokens"] > 0
    assert "cost_usd" not in counters()
    assert failed == "InvalidRequestError"
    assert {name: counters()[name] for name in ("lm_calls", "lm_errors", "cache_hits")} == {
        "lm_calls": 2,
        "lm_errors": 1,
        "cache_hits": 1,
    }


def test_an_answer_cache_finds_equal_requests():
    """Requests are compared by content, and the least recently used answer is dropped first."""
    from dspy import lm15

    def request(text, **config):
        return lm15.Request("m/x", (lm15.Message.user(text),), config=lm15.Config(**config))

    answers = AnswerCache(2)
    answers.add(key_of(request("a")), 1)
    answers.add(key_of(request("b")), 2)
    assert answers.find(key_of(request("a"))) == 1
    answers.add(key_of(request("c")), 3)
    assert [answers.find(key_of(request(text))) for text in "abc"] == [1, None, 3]
    assert answers.find(key_of(request("a", temperature=0.5))) is None


def test_all_of_a_request_counts():
    """Requests that differ in any part are different; the order of keys in maps, and subclasses of str, are not."""
    from dspy import lm15

    from bridge.adapters.dspy.formats.values import Formatted

    def request(*texts, role="user", system=None, tools=(), **config):
        messages = tuple([lm15.Message(role, (lm15.TextPart(text),)) for text in texts])
        return lm15.Request("m/x", messages, system, tools, lm15.Config(**config))

    image = (lm15.ImagePart(url="https://example.com/x.png"), lm15.TextPart("a"))
    different = [
        request("a"),
        request("a", "b"),
        request("ab"),
        request("a", role="assistant"),
        request("a", role="developer"),
        request("b", system="a"),
        request("a", system="b"),
        request("a", tools=(lm15.FunctionTool("f", "", {"type": "object"}),)),
        request("a", tools=(lm15.FunctionTool("f", "", {"type": "object", "x": 1}),)),
        request("a", temperature=0.5),
        request("a", max_tokens=5),
        request("a", extensions={"x": {"a": 1, "b": 2}}),
        request("a", extensions={"x": {"a": 1, "b": 3}}),
        lm15.Request("m/x", (lm15.Message("user", image),)),
        lm15.Request("m/x", (lm15.Message("user", image[::-1]),)),
        lm15.Request("m/y", request("a").messages),
    ]
    answers = AnswerCache(99)
    for number, each in enumerate(different):
        assert answers.find(key_of(each)) is None
        answers.add(key_of(each), number)
    assert [answers.find(key_of(each)) for each in different] == [*range(len(different))]
    assert answers.find(key_of(request(Formatted("a")))) == 0
    assert answers.find(key_of(request("a", extensions={"x": {"b": 2, "a": 1}}))) == 11
