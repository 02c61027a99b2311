"""execute_batch: many runs of one program in one call."""

from __future__ import annotations

import os
import threading

import pytest

from bridge import Client, errors
from openai_server import HTTPFault, OpenAIServer, fields
from peer import wait_until

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
WAIT = 30.0  # seconds, for what must happen


@pytest.fixture(scope="module")
def client(support):
    programs = ("annotates=own_modules:Annotates", "fails=own_modules:Fails", "returns=own_modules:Returns")
    flags = [part for program in programs for part in ("--program", program)]
    paths = os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])
    with Client.start(flags=flags, env={"PYTHONPATH": paths}) as client:
        client.call("configure_lm", {"provider": "scripted", "answers": {f"-{n}-": {"answer": n} for n in range(9)}})
        client.call("create_program", {"id": "qa", "signature": QA})
        yield client


def questions(*numbers):
    return [{"question": f"-{number}-"} for number in numbers]


def batch(client, inputs, session_id=None, **args):
    return client.call(
        "execute_batch", {"program_id": "qa", "inputs": inputs, **args}, timeout=WAIT, session_id=session_id
    )


def answers(results):
    return [result["outputs"]["answer"] for result in results]


@pytest.mark.parametrize("threads", [1, 3, 256])
def test_results_are_in_the_order_of_the_inputs(client, threads):
    """Whatever the number of threads is; each is what execute_program returns, without the id."""
    numbers = [n % 9 for n in range(50)]
    result = batch(client, questions(*numbers), threads=threads)
    assert answers(result["results"]) == [str(number) for number in numbers]
    assert (result["program_id"], result["total"], result["succeeded"], result["failed"]) == ("qa", 50, 50, 0)
    one = client.call("execute_program", {"program_id": "qa", "inputs": questions(3)[0]})
    assert result["results"][3].keys() == one.keys() - {"program_id"}


def test_no_inputs_are_no_results(client):
    result = batch(client, [])
    assert (result["results"], result["total"]) == ([], 0)


def test_a_row_that_fails_has_an_error(client):
    """Those with wrong inputs call no model; errors have the fields of a reply, with the row in their path."""
    before = client.stats()["commands"]["execute_batch"]["counters"]["lm_calls"]
    result = batch(client, [*questions(1), {"query": 1}, "no map", {}, {"question": b"\xff"}, *questions("none", 2)])
    found = [row.get("error", row) for row in result["results"]]
    assert answers([found[0], found[6]]) == ["1", "2"]
    assert [error["code"] for error in found[1:6]] == ["invalid_args"] * 4 + ["lm_error"]
    assert [error["details"]["path"] for error in found[1:5]] == [
        "args.inputs[1].query",
        "args.inputs[2]",
        "args.inputs[3].question",
        "args.inputs[4].question",
    ]
    assert found[1]["message"] == "inputs not declared by the signature: query; declared: question"
    assert found[5].keys() == {"code", "message", "category", "severity", "recovery", "details"}
    assert (result["succeeded"], result["failed"]) == (2, 5)
    assert client.stats()["commands"]["execute_batch"]["counters"]["lm_calls"] - before == 3


def test_rows_come_as_events(client):
    """In any order, each with its index; `progress` counts them."""
    args = {"program_id": "qa", "inputs": [*questions(*range(9)), {}]}
    with client.stream("execute_batch", args, timeout=WAIT) as stream:
        events = list(stream)
    rows = sorted((data for event, data in events if event == "row"), key=lambda row: row["index"])
    assert [row["index"] for row in rows] == list(range(10))
    assert answers(rows[:9]) == [str(n) for n in range(9)]
    assert rows[9]["error"]["code"] == "invalid_args"
    progress = [data for event, data in events if event == "progress"]
    assert progress == [{"phase": "batch", "done": n + 1, "total": 10} for n in range(10)]
    assert {event for event, _ in events} == {"row", "progress"}
    result = stream.result()
    assert [{"index": n, **row} for n, row in enumerate(result["results"])] == rows


def test_the_reply_need_not_have_the_results(client):
    """They are only events then, so that a worker need not hold them."""
    with client.stream("execute_batch", {"program_id": "qa", "inputs": questions(1, 2), "results": False}) as stream:
        rows = [data["index"] for event, data in stream if event == "row"]
    assert sorted(rows) == [0, 1]
    result = stream.result()
    assert "results" not in result
    assert result["succeeded"] == 2


def test_the_progress_of_many_rows_is_announced_in_steps(client):
    """About a hundred times, and at the end."""
    args = {"program_id": "qa", "inputs": questions(*(n % 9 for n in range(1000))), "results": False}
    with client.stream("execute_batch", args, timeout=WAIT) as stream:
        done = [data["done"] for event, data in stream if event == "progress"]
    assert set(range(10, 1001, 10)) <= set(done)
    assert len(done) < 200
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"inputs": "no list"}, "args.inputs"),
        ({"inputs": [], "threads": 0}, "args.threads"),
        ({"inputs": [], "threads": 257}, "args.threads"),
        ({"inputs": [], "options": {"temperature": 9}}, "args.options.temperature"),
        ({"inputs": [], "order": 1}, "args.order"),
        ({}, "args.inputs"),
    ],
)
def test_wrong_args_are_refused(client, args, path):
    """Before any run."""
    with pytest.raises(errors.InvalidArgs) as raised:
        client.call("execute_batch", {"program_id": "qa", **args})
    assert raised.value.details["path"] == path


def test_what_all_rows_need_is_checked_once(client):
    """No program and no model are errors of the call."""
    with pytest.raises(errors.ProgramNotFound):
        client.call("execute_batch", {"program_id": "none", "inputs": []})
    with Client.start() as other:
        other.call("create_program", {"id": "qa", "signature": QA})
        with pytest.raises(errors.LMNotConfigured):
            batch(other, questions(1))


def test_programs_of_the_operator_run_on_many_inputs(client):
    """What a module raises is the error of its row, and so is a result that is no plain data."""
    rows = [{"count": 1}, {"count": 0}, {"count": 2}]
    result = client.call("execute_batch", {"program_id": "annotates", "inputs": rows}, timeout=WAIT)
    assert [row.get("outputs", {}).get("count") for row in result["results"]] == [1, None, 2]
    assert result["results"][1]["error"]["details"]["path"] == "args.inputs[1].count"
    rows = [{"kind": kind} for kind in ("exit", "bridge", "other")]
    result = client.call("execute_batch", {"program_id": "fails", "inputs": rows}, timeout=WAIT)
    codes = [row["error"]["code"] for row in result["results"]]
    assert codes == ["handler_error", "not_allowed", "handler_error"]
    rows = [{"kind": kind} for kind in ("nan", "enum", "object")]
    result = client.call("execute_batch", {"program_id": "returns", "inputs": rows}, timeout=WAIT)
    assert [row.get("error", {}).get("code") for row in result["results"]] == ["not_encodable", None, "not_encodable"]


def test_a_result_that_cannot_be_sent_is_an_error_of_its_row(client):
    """Here an integer that MessagePack does not have."""
    args = {"provider": "scripted", "answers": {"big": {"n": str(10**30)}, "": {"n": 1}}}
    client.call("configure_lm", args, session_id="integers")
    number = {"inputs": [{"name": "q"}], "outputs": [{"name": "n", "type": "integer"}]}
    client.call("create_program", {"id": "qa", "signature": number}, session_id="integers")
    args = {"program_id": "qa", "inputs": [{"q": "big"}, {"q": "small"}]}
    with client.stream("execute_batch", args, timeout=WAIT, session_id="integers") as stream:
        rows = sorted((data["index"], set(data)) for event, data in stream if event == "row")
    results = stream.result()["results"]
    assert results[1]["outputs"] == {"n": 1}
    assert results[0]["error"]["code"] == "not_encodable"
    assert ["outputs" in keys for _, keys in rows] == [False, True]


def test_results_that_are_longer_than_a_reply_end_the_batch_early():
    """The error says how to get them; as events they come."""
    with Client.start(flags=["--max-frame", "65536"]) as client:
        client.call("configure_lm", {"provider": "scripted", "answers": {"": {"answer": "x" * 10_000}}})
        client.call("create_program", {"id": "qa", "signature": QA})
        with pytest.raises(errors.ReplyTooLarge, match="results: false"):
            batch(client, questions(*range(1000)), threads=1)
        assert client.stats()["commands"]["execute_batch"]["counters"]["lm_calls"] == 7
        args = {"program_id": "qa", "inputs": questions(*range(20)), "results": False}
        with client.stream("execute_batch", args, timeout=WAIT) as stream:
            assert sum(event == "row" for event, _ in stream) == 20


class Server(OpenAIServer):
    """A provider that answers when a test lets it. waiting: how many requests wait."""

    def __init__(self):
        super().__init__(self._answered)
        self.waiting = 0
        self.opened = threading.Event()
        self._lock = threading.Lock()

    def _answered(self, prompt):
        with self._lock:
            self.waiting += 1
        assert self.opened.wait(WAIT)
        if "fault" in prompt:
            raise HTTPFault(429 if "429" in prompt else 500, "no")
        return "garbage" if "garbage" in prompt else fields(answer="yes")


@pytest.fixture
def server():
    with Server() as server:
        yield server
        server.opened.set()


def configured(client, server, session_id, **settings):
    model = {"model": "openai/gpt-4o-mini", "api_key": "sk-loopback", "api_base": server.url, "retries": 0, **settings}
    client.call("configure_lm", model, session_id=session_id)


def threads(client):
    """Return the number of the worker's threads. It may grow by one when a call arrives while another one ends."""
    return len(os.listdir(f"/proc/{client.pid}/task"))


def test_as_many_rows_run_at_once_as_there_are_threads(client, server):
    """A provider's errors are those of rows."""
    configured(client, server, "http")
    rows = [{"question": text} for text in ("a", "fault 500", "garbage", "fault 429", "b")]
    call = client.submit("execute_batch", {"program_id": "qa", "inputs": rows, "threads": 4}, session_id="http")
    wait_until(lambda: server.waiting == 4)
    server.opened.set()
    results = call.result(WAIT)["results"]
    assert answers([results[0], results[4]]) == ["yes", "yes"]
    details = [results[n]["error"]["details"] for n in (1, 2, 3)]
    assert [found.get("status") for found in details] == [500, None, 429]
    assert details[1]["lm_code"] == "adapter_parse_error"


@pytest.mark.parametrize("ends", ["cancel", "deadline"])
def test_a_batch_that_ends_early_leaves_no_thread(client, server, ends):
    """The reply comes at once; requests that are under way end, and no further one is sent."""
    configured(client, server, "http")
    rows = questions(*range(100))
    batch(client, questions(1))  # so that its thread exists
    before = threads(client)
    args = {"program_id": "qa", "inputs": rows, "threads": 5}
    call = client.submit("execute_batch", args, timeout=2.0 if ends == "deadline" else None, session_id="http")
    wait_until(lambda: server.waiting == 5)
    if ends == "cancel":
        call.cancel()
    with pytest.raises(errors.Cancelled if ends == "cancel" else errors.DeadlineExceeded):
        call.result(WAIT)
    client.call("ping")  # the worker knows of it
    server.opened.set()
    wait_until(lambda: threads(client) <= before + 1)
    assert server.waiting == 5


def test_the_waits_between_attempts_end_with_the_batch(client, server):
    """A provider that is overloaded does not keep threads."""
    configured(client, server, "http", retries=9, retry_wait=60.0, retry_cap=60.0)
    server.opened.set()
    batch(client, questions(1))
    before = threads(client)
    args = {"program_id": "qa", "inputs": [{"question": "fault 500"}] * 3, "threads": 3}
    call = client.submit("execute_batch", args, session_id="http")
    wait_until(lambda: server.waiting == 3)
    call.cancel()
    wait_until(lambda: threads(client) <= before + 1)
    assert server.waiting == 3


def test_tools_are_called_for_several_rows_at_once(client):
    """The session's, by programs of type react; rows do not announce them."""
    both = threading.Barrier(2)

    def meet(name: str) -> str:
        """Wait for the other row."""
        both.wait(WAIT)
        return name

    client.register_tools([meet], session_id="tools")
    steps = {"next_thought": "so", "next_tool_name": "meet", "next_tool_args": {"name": "x"}}
    done = {"next_thought": "so", "next_tool_name": "finish", "next_tool_args": {}}
    script = {
        "Observation": done,
        "observation_0": done,
        "next_thought": steps,
        "": {"reasoning": "-", "answer": "met"},
    }
    client.call("configure_lm", {"provider": "scripted", "answers": script}, session_id="tools")
    client.call("create_program", {"id": "qa", "signature": QA, "program_type": "react"}, session_id="tools")
    args = {"program_id": "qa", "inputs": questions(1, 2), "threads": 2}
    with client.stream("execute_batch", args, timeout=WAIT, session_id="tools") as stream:
        events = {event for event, _ in stream}
    assert events == {"row", "progress"}
    assert not both.broken
    assert stream.result()["total"] == 2
