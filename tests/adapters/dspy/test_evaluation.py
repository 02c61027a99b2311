"""evaluate: runs on examples, their scores, and metrics of the host."""

from __future__ import annotations

import os
import threading

import pytest

from bridge import Client, errors
from openai_server import HTTPFault, OpenAIServer, fields
from peer import wait_until

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
WAIT = 30.0  # seconds, for what must happen
ANSWERS = {f"-{n}-": {"answer": str(n), "reasoning": "so"} for n in range(9)}


@pytest.fixture(scope="module")
def client(support):
    flags = ["--program", "stages=own_modules:Stages", "--program", "static=own_modules:WithoutSelf"]
    paths = os.pathsep.join([support, os.environ.get("PYTHONPATH", "")])
    with Client.start(flags=flags, env={"PYTHONPATH": paths}) as client:
        client.call("configure_lm", {"provider": "scripted", "answers": ANSWERS})
        client.call("create_program", {"id": "qa", "signature": QA})
        yield client


def example(number, expected=None, **more):
    expected = number if expected is None else expected
    return {"inputs": {"question": f"-{number}-"}, "outputs": {"answer": str(expected)}, **more}


def evaluate(client, devset, metric="exact_match", program_id="qa", session_id=None, **args):
    args = {"program_id": program_id, "devset": devset, "metric": metric, **args}
    return client.call("evaluate", args, timeout=WAIT, session_id=session_id)


def lm_calls(client):
    return client.stats()["commands"]["evaluate"]["counters"].get("lm_calls", 0)


def test_the_score_is_the_mean_of_all_examples(client):
    """Results are in their order; a run that fails counts as 0."""
    result = evaluate(client, [example(1), example(2, 3), example("none"), example(4)])
    assert result["score"] == 0.5
    assert (result["program_id"], result["total"], result["failed"]) == ("qa", 4, 1)
    found = result["results"]
    assert [row["score"] for row in found] == [1.0, 0.0, 0.0, 1.0]
    assert found[0] == {"outputs": {"answer": "1"}, "score": 1.0}
    assert found[2]["error"]["code"] == "lm_error"
    assert "outputs" not in found[2]


def test_one_example_is_enough(client):
    assert evaluate(client, [example(1)])["score"] == 1.0


def test_examples_may_be_flat(client):
    """As DSPy's users write them: one map of all fields."""
    assert evaluate(client, [{"question": "-1-", "answer": "1"}, {"question": "-2-", "answer": "1"}])["score"] == 0.5


def test_rows_and_a_running_score_come_as_events(client):
    """The score is the mean of the rows that are done."""
    args = {"program_id": "qa", "devset": [example(n, 1) for n in range(4)], "metric": "exact_match", "threads": 1}
    with client.stream("evaluate", {**args, "results": False}, timeout=WAIT) as stream:
        events = list(stream)
    rows = [data for event, data in events if event == "row"]
    assert [(row["index"], row["score"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 0.0), (3, 0.0)]
    progress = [data for event, data in events if event == "progress"]
    assert [step["score"] for step in progress] == [0.0, 0.5, pytest.approx(1 / 3), 0.25]
    assert progress[-1] == {"phase": "evaluate", "done": 4, "total": 4, "score": 0.25}
    assert "results" not in stream.result()


@pytest.mark.parametrize(
    ("devset", "path"),
    [
        ([], "args.devset"),
        ("no list", "args.devset"),
        ([example(1), 3], "args.devset[1]"),
        ([example(1), {"inputs": {"query": "?"}}], "args.devset[1].inputs.query"),
        ([example(1), {"inputs": {}}], "args.devset[1].inputs.question"),
        ([{"inputs": {"question": "?"}, "outputs": {"text": "?"}}], "args.devset[0].outputs.text"),
        ([{"inputs": {"question": "?"}, "outputs": {"answer": [{}]}}], "args.devset[0].outputs.answer"),
        ([example(1, weight=3)], "args.devset[0].weight"),
        ([*[example(1)] * 3000, {"inputs": {"question": b"\xff"}}], "args.devset[3000].inputs.question"),
    ],
)
def test_wrong_examples_are_refused_before_any_model_is_called(client, devset, path):
    """With the path of the first one."""
    before = lm_calls(client) if "evaluate" in client.stats()["commands"] else 0
    with pytest.raises(errors.InvalidArgs) as raised:
        evaluate(client, devset)
    assert raised.value.details["path"] == path
    assert lm_calls(client) == before


@pytest.mark.parametrize("args", [{"threads": 0}, {"num_threads": 3}, {"options": {"top": 1}}])
def test_wrong_args_are_refused(client, args):
    """Unknown ones, too."""
    with pytest.raises(errors.InvalidArgs):
        evaluate(client, [example(1)], **args)


def test_there_must_be_a_program_and_a_model(client):
    with pytest.raises(errors.ProgramNotFound):
        evaluate(client, [example(1)], program_id="none")
    with Client.start() as other:
        other.call("create_program", {"id": "qa", "signature": QA})
        with pytest.raises(errors.LMNotConfigured):
            evaluate(other, [example(1)])


def test_programs_of_the_operator_are_evaluated(client):
    """They may return outputs that they do not declare; an output that they do not return fails the evaluation."""
    devset = [{"inputs": {"question": f"-{n}-"}, "outputs": {"draft": "1"}} for n in (1, 2)]
    assert evaluate(client, devset, program_id="stages")["score"] == 0.5
    devset = [{"inputs": {"count": n}, "outputs": {"count": 1}} for n in (1, 2)]
    assert evaluate(client, devset, program_id="static")["score"] == 0.5
    devset[1]["inputs"] = {"count": "many"}
    with pytest.raises(errors.InvalidArgs, match=r"args.devset\[1\].inputs.count"):
        evaluate(client, devset, program_id="static")
    with pytest.raises(errors.HandlerError, match="other, which the program did not return"):
        evaluate(client, [{"inputs": {"count": 1}, "outputs": {"other": 1}}], program_id="static")


def test_a_metric_of_the_host_is_called_for_each_example(client):
    """It gets the inputs, what is expected and the outputs, and returns a score, perhaps with feedback."""
    calls = []

    def judge(request):
        calls.append(request)
        answer = request["outputs"]["answer"]
        return {"1": True, "2": 0.25, "3": {"score": 1, "feedback": "well done"}, "4": {"score": 0.5}}[answer]

    client.register(metrics={"judge": judge}, session_id="host")
    metric = {"host": "judge"}
    result = evaluate(client, [example(n, "x") for n in (1, 2, 3, 4)], metric, session_id="host")
    assert [row["score"] for row in result["results"]] == [1.0, 0.25, 1.0, 0.5]
    assert [row.get("feedback") for row in result["results"]] == [None, None, "well done", None]
    assert result["score"] == 0.6875
    call = next(call for call in calls if call["outputs"] == {"answer": "2"})
    assert call == {
        "inputs": {"question": "-2-"},
        "expected": {"answer": "x"},
        "outputs": {"answer": "2"},
        "session_id": "host",
    }


def test_a_metric_of_the_host_reads_the_trace_if_it_asks_for_it(client):
    """Each call of a predictor, with the host's names of fields and its name in the module."""
    traces = []

    def judge(trace):
        traces.append(trace)
        return 1

    client.register(metrics={"judge": judge}, session_id="traced")
    signature = {"inputs": [{"name": "my question"}], "outputs": [{"name": "answer"}, {"name": "day", "type": "date"}]}
    create = {"id": "p", "signature": signature, "program_type": "chain_of_thought"}
    client.call("create_program", create, session_id="traced")
    answers = {"": {"reasoning": "so", "answer": "x", "day": "2024-02-29"}}
    client.call("configure_lm", {"provider": "scripted", "answers": answers}, session_id="traced")
    devset = [{"inputs": {"my question": "?"}, "outputs": {}}]
    evaluate(client, devset, {"host": "judge", "trace": True}, "p", "traced")
    evaluate(client, devset, {"host": "judge"}, "p", "traced")
    outputs = {"reasoning": "so", "answer": "x", "day": "2024-02-29"}
    step = {"predictor": "predict", "inputs": {"my question": "?"}, "outputs": outputs}
    assert traces == [[step], None]


def failing():
    raise LookupError("no such rule")


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("good", "'good'"),
        (None, "None"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (-0.1, "-0.1"),
        (2, "2"),
        ([1], "list"),
        (b"1", "b'1'"),
        ({}, "None"),
        ({"score": "1"}, "'1'"),
        ({"score": 1, "feedback": 3}, "3"),
        ({"score": 1, "reason": ""}, "'reason'"),
        (failing, "no such rule"),
    ],
)
def test_a_metric_that_fails_or_returns_no_score_fails_the_evaluation(client, answer, found):
    """The error names the row, the metric and what it returned."""

    def judge(outputs):
        if outputs["answer"] != "3":
            return 1
        return answer() if callable(answer) else answer

    client.register(metrics={"judge": judge})
    with pytest.raises(errors.HandlerError, match=r"args.devset\[2\]: the metric judge ") as raised:
        evaluate(client, [example(1), example(2), example(3)], {"host": "judge"})
    assert found in str(raised.value)
    assert (raised.value.details["row"], raised.value.details["metric"]) == (2, "judge")


def test_a_host_that_has_no_such_metric_or_none_at_all(client):
    """The first is an error of the first row, the second is known before any model is called."""
    with pytest.raises(errors.HandlerError, match="unknown metric 'none'"):
        evaluate(client, [example(1)], {"host": "none"})
    with Client.start() as other:
        other.call("create_program", {"id": "qa", "signature": QA})
        other.call("configure_lm", {"provider": "scripted", "answers": ANSWERS})
        with pytest.raises(errors.NotAllowed):
            evaluate(other, [example(1)], {"host": "judge"})
        assert "lm_calls" not in other.stats()["commands"]["evaluate"].get("counters", {})


@pytest.mark.parametrize("ends", ["cancel", "deadline", "another row fails"])
def test_a_metric_that_hangs_ends_with_the_evaluation(client, ends):
    """So do all threads of the worker that wait for it."""
    entered, opened = threading.Semaphore(0), threading.Event()

    def judge(outputs):
        entered.release()
        if outputs["answer"] == "8":
            for _ in range(2):
                assert entered.acquire(timeout=WAIT)
            raise LookupError("this one")
        opened.wait(WAIT)
        return 1

    client.register(metrics={"judge": judge})
    evaluate(client, [example(1)])  # so that its thread exists
    before = len(os.listdir(f"/proc/{client.pid}/task"))
    rows = [example(1), example(2), example(8 if ends == "another row fails" else 3)]
    args = {"program_id": "qa", "devset": rows, "metric": {"host": "judge"}, "threads": 3}
    call = client.submit("evaluate", args, timeout=1.0 if ends == "deadline" else None)
    if ends == "cancel":
        for _ in range(3):
            assert entered.acquire(timeout=WAIT)
        call.cancel()
    expected = {"cancel": errors.Cancelled, "deadline": errors.DeadlineExceeded}.get(ends, errors.HandlerError)
    with pytest.raises(expected):
        call.result(WAIT)
    # One more may be there: a worker starts a thread for a call that arrives while another one ends.
    wait_until(lambda: len(os.listdir(f"/proc/{client.pid}/task")) <= before + 1)
    opened.set()


def test_a_metric_may_call_the_worker(client):
    """For instance to ask another program."""

    def judge(outputs):
        run = {"program_id": "qa", "inputs": {"question": f"-{outputs['answer']}-"}}
        return client.call("execute_program", run)["outputs"] == outputs

    client.register(metrics={"judge": judge})
    assert evaluate(client, [example(n) for n in range(9)], {"host": "judge"}, threads=9)["score"] == 1.0


def test_a_judge_without_an_answer_is_an_error_of_its_row(client):
    """The program's outputs are there; the score is 0."""

    def answer(prompt):
        if "ground_truth" not in prompt:
            return fields(answer="yes")
        if "-2-" in prompt:
            raise HTTPFault(500, "no")
        return "garbage" if "-3-" in prompt else fields(reasoning="both agree", precision="1.0", recall="1.0")

    with OpenAIServer(answer) as server:
        model = {"model": "openai/gpt-4o-mini", "api_key": "sk-loopback", "api_base": server.url, "retries": 0}
        client.call("configure_lm", model, session_id="judged")
        result = evaluate(client, [example(n, "yes") for n in (1, 2, 3)], "semantic_f1", session_id="judged")
    assert [row["score"] for row in result["results"]] == [1.0, 0.0, 0.0]
    assert [row["outputs"] for row in result["results"]] == [{"answer": "yes"}] * 3
    assert [row.get("error", {}).get("code") for row in result["results"]] == [None, "lm_error", "lm_error"]
    assert result["results"][0]["feedback"] == "both agree"
    assert result["failed"] == 2
