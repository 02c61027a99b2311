"""Runs of modules of the operator: streams, threads, tools, cancelling, deadlines, the cache, statistics."""

from __future__ import annotations

import os
import threading
from collections import Counter

import pytest

from bridge import Client, errors

PROGRAMS = {"stages": "Stages", "many": "Many", "tools": "Tools", "stubborn": "Stubborn", "wrapped": "wrapped"}
PROGRAMS |= {"several": "Several", "json": "InJSON", "fallback": "Fallback", "awaits": "Awaits"}
FLAGS = [part for name, attribute in PROGRAMS.items() for part in ("--program", f"{name}=own_modules:{attribute}")]
TWO_STAGES = [{"answer": "draft"}, {"reasoning": "why", "answer": "final"}]


class Host:
    """The tools of a host: one that answers, and one that waits until it is let go."""

    def __init__(self) -> None:
        self.called = threading.Semaphore(0)
        self.go_on = threading.Event()

    def lookup(self, word: str) -> str:
        """Look up a word."""
        return f"{word} means something"

    def hold(self, word: str) -> str:
        """Wait."""
        self.called.release()
        self.go_on.wait()
        return word


@pytest.fixture(scope="module")
def worker(support):
    """Return a worker, and the host of its tools."""
    host = Host()
    environment = {"PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])}
    with Client.start(flags=FLAGS, env=environment, tools=[host.lookup, host.hold]) as client:
        yield client, host


@pytest.fixture
def client(worker):
    return worker[0]


@pytest.fixture
def host(worker):
    host = worker[1]
    host.go_on.clear()
    host.called = threading.Semaphore(0)
    yield host
    host.go_on.set()


def configure(client, answers, **settings):
    client.call("configure_lm", {"provider": "scripted", "answers": answers, **settings})


def chunks(stream, *keys):
    """Return the data of the chunks, in order of their calls, without the texts' borders."""
    found: dict[tuple, str] = {}
    for event, data in stream:
        if event == "chunk":
            place = tuple(data[key] for key in keys)
            found[place] = found.get(place, "") + data["text"]
    return found


def test_each_stage_streams_its_fields(client):
    """Stages with fields of the same name are told apart by the name of the predictor."""
    configure(client, TWO_STAGES)
    with client.stream("execute_program", {"program_id": "stages", "inputs": {"question": "?"}}) as stream:
        assert chunks(stream, "predictor", "call", "field") == {
            ("draft", 1, "answer"): "draft",
            ("final.predict", 2, "reasoning"): "why",
            ("final.predict", 2, "answer"): "final",
        }
        result = stream.result()
    assert result["outputs"] == {"answer": "final", "draft": "draft", "history": 0}
    assert result["model"] == "scripted/answers"


def test_status_events_name_the_predictor(client):
    configure(client, TWO_STAGES, cache=10)
    for status in ("lm_call", "cache_hit"):
        with client.stream("execute_program", {"program_id": "stages", "inputs": {"question": "?"}}) as stream:
            found = [data for event, data in stream if event == "status"]
        assert [(data["status"], data["predictor"], data["call"]) for data in found] == [
            (status, "draft", 1),
            (status, "final.predict", 2),
        ]


def test_a_predictor_that_is_called_twice_is_told_apart_by_the_call(client):
    configure(client, [{"answer": "one"}, *TWO_STAGES])
    args = {"program_id": "stages", "inputs": {"question": "?", "repeat": 2}}
    with client.stream("execute_program", args) as stream:
        found = chunks(stream, "predictor", "call")
    assert found[("draft", 1)] == "one"
    assert found[("draft", 2)] == "draft"


def test_several_answers_to_one_question_are_several_calls(client):
    configure(client, [{"a": "one"}, {"a": "two"}])
    with client.stream("execute_program", {"program_id": "several", "inputs": {"q": "?"}}) as stream:
        found = chunks(stream, "predictor", "call")
        assert stream.result()["outputs"] == {"answers": ["one", "two"]}
    assert found == {("predict", 1): "one", ("predict", 2): "two"}


def test_copies_of_a_predictor_have_its_name(client):
    """BestOfN copies its module for each attempt."""
    configure(client, [{"reasoning": "r", "answer": "a"}, {"reasoning": "r", "answer": "b"}])
    with client.stream("execute_program", {"program_id": "wrapped", "inputs": {"question": "?"}}) as stream:
        found = chunks(stream, "predictor", "call", "field")
        assert stream.result()["outputs"]["answer"] == "b"
    assert found[("predict", 1, "answer")] == "a"
    assert found[("predict", 2, "answer")] == "b"


@pytest.mark.parametrize("threads", ["dspy", "own"])
def test_calls_on_threads_belong_to_the_run(client, threads):
    """On those of dspy.Parallel, and on those that run in a copy of the context: streamed and counted."""
    questions = [f"q{number}." for number in range(8)]
    configure(client, {question: {"a": question.upper()} for question in questions})
    before = counters(client)
    args = {"program_id": "many", "inputs": {"questions": questions, "threads": threads}}
    with client.stream("execute_program", args) as stream:
        found = chunks(stream, "call", "predictor", "field")
        assert stream.result()["outputs"]["answers"] == [question.upper() for question in questions]
    assert sorted(found.values()) == [question.upper() for question in questions]
    assert {place[0] for place in found} == set(range(1, 9))
    assert {place[1:] for place in found} == {("predict", "a")}
    assert counters(client)["lm_calls"] - before["lm_calls"] == 8


def counters(client):
    commands = client.call("get_stats", {"include": ["commands"]})["commands"]
    return Counter(commands.get("execute_program", {}).get("counters", {}))


def test_runs_with_threads_do_not_disturb_each_other(client):
    """In DSPy they share the list of progress bars, which each of them clears."""
    configure(client, {"": {"a": "x"}})
    args = {"program_id": "many", "inputs": {"questions": ["1", "2"]}}
    runs = [client.submit("execute_program", args) for _ in range(200)]
    assert all(run.result(60)["outputs"] == {"answers": ["x", "x"]} for run in runs)


def test_statistics_count_the_calls_of_all_stages(client):
    configure(client, TWO_STAGES)
    before = counters(client)
    client.call("execute_program", {"program_id": "stages", "inputs": {"question": "?"}})
    after = counters(client)
    assert after["lm_calls"] - before["lm_calls"] == 2
    assert after["input_tokens"] > before["input_tokens"]


def test_answers_are_cached_by_stage(client):
    """A run with other settings is not answered from the cache."""
    configure(client, [*TWO_STAGES, {"answer": "new"}, {"reasoning": "-", "answer": "other"}], cache=10)
    args = {"program_id": "stages", "inputs": {"question": "?"}}
    assert client.call("execute_program", args)["outputs"]["answer"] == "final"
    assert client.call("execute_program", args)["outputs"]["answer"] == "final"
    warm = {**args, "options": {"temperature": 0.7}}
    assert client.call("execute_program", warm)["outputs"]["answer"] == "other"


def test_a_module_calls_the_tools_of_the_host(client):
    """Those of the session for which it runs."""
    client.call("register_tools", {"tools": [{"name": "other"}]}, session_id="s")
    client.call("configure_lm", {"provider": "scripted", "answers": []})
    args = {"program_id": "tools", "inputs": {"question": "tea"}}
    with client.stream("execute_program", args) as stream:
        events = [event for event, _ in stream]
        outputs = stream.result()["outputs"]
    assert outputs == {"names": ["lookup", "hold"], "result": "tea means something"}
    assert events == ["tool_call", "tool_result"]
    outputs = client.call("execute_program", args, session_id="s")["outputs"]
    assert outputs == {"names": ["lookup", "hold", "other"], "result": "tea means something"}
    args["inputs"]["awaits"] = True
    assert client.call("execute_program", args)["outputs"] == {"result": "tea means something"}


def test_an_agent_of_a_module_calls_the_tools_of_the_host(client):
    step = "[[ ## next_thought ## ]]\n-\n[[ ## next_tool_name ## ]]\n{}\n[[ ## next_tool_args ## ]]\n{}"
    configure(
        client,
        [step.format("lookup", '{"word": "tea"}'), step.format("finish", "{}"), {"reasoning": "-", "answer": "drink"}],
    )
    args = {"program_id": "tools", "inputs": {"question": "tea?", "agent": True}}
    outputs = client.call("execute_program", args)["outputs"]
    assert outputs["answer"] == "drink"
    assert outputs["trajectory"]["observation_0"] == "tea means something"


@pytest.mark.parametrize("way", ["tool", "model", "parallel", "loop"])
def test_a_cancel_ends_a_module_that_catches_exceptions(client, host, way):
    """At its next step: while it waits for a tool, or before the next call of a model or a tool."""
    configure(client, {"": {"a": "x"}})
    call = client.submit("execute_program", {"program_id": "stubborn", "inputs": {"way": way}})
    host.called.acquire()
    assert call.cancel()
    with pytest.raises(errors.Cancelled):
        call.result()
    host.go_on.set()
    wait_until_idle(client)


def test_a_deadline_ends_a_module_that_catches_exceptions(client, host):
    configure(client, {"": {"a": "x"}})
    args = {"program_id": "stubborn", "inputs": {"way": "parallel"}}
    with pytest.raises(errors.DeadlineExceeded):
        client.call("execute_program", args, timeout=0.2)
    host.go_on.set()
    wait_until_idle(client)


def wait_until_idle(client):
    """Wait until no thread runs a call that is over."""
    while client.call("get_stats", {"include": ["worker"]})["worker"]["threads_lost"]:
        client.call("ping")


def test_sessions_share_a_module_and_keep_their_models(client):
    """Runs of many sessions at once get the answers of their own models."""
    calls = {}
    for number in range(20):
        session = f"user {number}"
        answers = [{"answer": f"draft {number}"}, {"reasoning": "-", "answer": f"final {number}"}]
        client.call("configure_lm", {"provider": "scripted", "answers": answers}, session_id=session)
        args = {"program_id": "stages", "inputs": {"question": "?"}}
        calls[number] = client.submit("execute_program", args, session_id=session)
    for number, call in calls.items():
        outputs = call.result(60)["outputs"]
        assert (outputs["draft"], outputs["answer"]) == (f"draft {number}", f"final {number}")


def test_a_module_may_use_another_adapter(client):
    """Its answers are not streamed; one that cannot be read is an error that contains the reply."""
    configure(client, ['{"a": 7}', '{"a": "many"}', '{"a": "many"}'])
    args = {"program_id": "json", "inputs": {"q": "?"}}
    with client.stream("execute_program", args) as stream:
        assert [event for event, _ in stream] == ["status"]
        assert stream.result()["outputs"] == {"a": 7}
    with pytest.raises(errors.LMError) as raised:
        client.call("execute_program", args)
    assert raised.value.details["lm_code"] == "adapter_parse_error"
    assert "many" in raised.value.details["reply"]


def test_a_module_may_await_its_predictor(client):
    """Each call streams its field and is counted; with another adapter it is only counted."""
    answers = {"what is x": {"a": "one"}, "what is y": {"a": "two"}, "": '{"a": "three"}'}
    configure(client, answers)
    args = {"program_id": "awaits", "inputs": {"questions": ["what is x", "what is y"]}}
    with client.stream("execute_program", args) as stream:
        found = chunks(stream, "predictor", "field", "call")
        assert stream.result()["outputs"] == {"answers": ["one", "two"]}
    assert sorted(found.values()) == ["one", "two"]
    assert sorted(found) == [("predict", "a", 1), ("predict", "a", 2)]
    args["inputs"] = {"questions": ["?"], "json": True}
    assert client.call("execute_program", args)["outputs"] == {"answers": ["three"]}


def test_a_module_may_catch_a_failure_of_its_model(client):
    configure(client, ["no field"])
    args = {"program_id": "fallback", "inputs": {"q": "?"}}
    assert client.call("execute_program", args)["outputs"] == {"a": "AdapterParseError"}
    assert client.call("execute_program", args)["outputs"] == {"a": "LMInvalidRequestError"}
