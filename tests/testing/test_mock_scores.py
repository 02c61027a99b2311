"""Batches, evaluations, optimizations and documents of a mock, with the values that a test sets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bridge import Options, errors
from bridge.testing import Mock, MockClient

QUESTION = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
ROWS = [
    {"inputs": {"question": "Who?"}, "outputs": {"answer": "Ann"}},
    {"inputs": {"question": "Where?"}, "outputs": {"answer": "Graz"}},
]


@pytest.fixture
def client():
    with MockClient.start() as client:
        client.call("configure_lm", {"provider": "offline"})
        client.call("create_program", {"id": "p", "signature": QUESTION})
        yield client


def test_a_batch_has_the_values_of_the_test_in_order(client):
    """Whatever the number of threads; a row that fails has the error of a worker."""
    client.mock.set_responses("answer", "a", "b", "c")
    args = {"program_id": "p", "inputs": [{"question": "1"}, {"query": "2"}, {"question": "3"}], "threads": 8}
    with client.stream("execute_batch", args) as stream:
        events = [(event, data.get("index", data.get("done"))) for event, data in stream]
    results = stream.result()["results"]
    assert [row.get("outputs") for row in results] == [{"answer": "a"}, None, {"answer": "b"}]
    assert results[1]["error"]["code"] == "invalid_args"
    assert [event for event in events if event[0] == "row"] == [("row", 0), ("row", 1), ("row", 2)]


def test_an_evaluation_scores_the_values_of_the_test(client):
    """A built-in metric says whether they are what is expected; a metric of the host is called."""
    client.mock.set_responses("answer", "ann", "Rome")
    result = client.call("evaluate", {"program_id": "p", "devset": ROWS, "metric": "exact_match"})
    assert [row["score"] for row in result["results"]] == [1.0, 0.0]
    assert result["score"] == 0.5
    either = [{**ROWS[1], "outputs": {"answer": ["Graz", "Rome"]}}]
    assert client.call("evaluate", {"program_id": "p", "devset": either, "metric": "exact_match"})["score"] == 1.0

    seen = []

    def judge(inputs, expected, outputs, trace):
        seen.append((inputs, expected, outputs, trace))
        return {"score": 0.25, "feedback": "so so"}

    client.register(metrics={"judge": judge})
    metric = {"host": "judge", "trace": True}
    result = client.call("evaluate", {"program_id": "p", "devset": ROWS[:1], "metric": metric})
    assert (result["score"], result["results"][0]["feedback"]) == (0.25, "so so")
    call = {"predictor": "self", "inputs": ROWS[0]["inputs"], "outputs": {"answer": "Rome"}}
    assert seen == [(ROWS[0]["inputs"], ROWS[0]["outputs"], {"answer": "Rome"}, [call])]


def test_an_optimization_adds_demos_and_scores(client):
    client.mock.set_responses("answer", "ann", "no", "ann", "graz")
    args = {"program_id": "p", "optimizer": "bootstrap_few_shot", "trainset": ROWS, "metric": "exact_match"}
    result = client.call("optimize", {**args, "save_as": "better"})
    assert (result["score_before"], result["score"]) == (0.5, 1.0)
    learned = client.call("get_program", {"program_id": "better", "include": ["demos"]})
    assert learned["demos"] == ROWS == result["changes"][0]["demos"]
    with pytest.raises(errors.ProgramExists):
        client.call("optimize", {**args, "save_as": "better"})


def test_a_test_sets_results_errors_and_delays(client):
    """As for any other command."""
    args = {"program_id": "p", "devset": ROWS, "metric": "exact_match"}
    client.mock.inject_error("evaluate", errors.Overloaded("busy"), times=1)
    with pytest.raises(errors.Overloaded, match="busy"):
        client.call("evaluate", args)
    client.mock.set_result("evaluate", {"score": 0.9, "results": []})
    assert client.call("evaluate", args)["score"] == 0.9
    client.mock.set_delay("execute_batch", 30)
    with pytest.raises(errors.DeadlineExceeded):
        client.call("execute_batch", {"program_id": "p", "inputs": [{"question": "?"}]}, timeout=0.05)


def test_documents_and_files(tmp_path):
    """A document of a mock is read by a worker, and files are in the folder of the options."""
    from bridge import Client

    row = ROWS[0]
    with Mock(Options(state_dir=str(tmp_path))) as mock, MockClient.start(mock=mock) as client:
        args = {"id": "p", "signature": QUESTION, "program_type": "chain_of_thought"}
        client.call("create_program", {**args, "demos": [{**row, "outputs": {**row["outputs"], "reasoning": "r"}}]})
        document = client.call("export_program", {"program_id": "p"})["document"]
        client.call("save_program", {"program_id": "p", "path": "a/p.json"})
        assert client.call("load_program", {"path": "a/p.json", "program_id": "q"})["status"] == "created"
        learned = client.call("get_program", {"program_id": "q", "include": ["demos"]})["demos"]
    with Client.start() as client:
        client.call("import_program", {"document": document, "program_id": "p"})
        assert client.call("get_program", {"program_id": "p", "include": ["demos"]})["demos"] == learned


def test_providers_of_embedders_are_not_called(client):
    """Their vectors are those of the built-in embedder; embedders of the host are called."""
    client.call("configure_embedder", {"model": "openai/text-embedding-3-small", "api_key": "k"})
    client.call("create_index", {"index_id": "i", "texts": ["the Louvre is in Paris", "the Prado is in Madrid"]})
    found = client.call("search_index", {"index_id": "i", "query": "Where is the Louvre?", "k": 1})
    assert found["passages"] == ["the Louvre is in Paris"]
    client.register(embedders={"ones": lambda texts: [[1.0, 0.0] for _ in texts]})
    vectors = client.call("embed", {"texts": ["a"], "embedder": "host/ones"})["vectors"]
    assert vectors.tolist() == [[1.0, 0.0]]


def test_dspy_is_not_imported():
    """None of these commands needs it."""
    code = """
import sys
from bridge.testing import MockClient
with MockClient.start() as client:
    client.call("configure_lm", {"provider": "offline"})
    client.call("create_program", {"id": "p", "signature": {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}})
    rows = [{"inputs": {"q": "?"}, "outputs": {"a": "!"}}]
    client.call("execute_batch", {"program_id": "p", "inputs": [{"q": "?"}]})
    client.call("evaluate", {"program_id": "p", "devset": rows, "metric": "exact_match"})
    args = {"program_id": "p", "optimizer": "labeled_few_shot", "trainset": rows, "metric": "f1"}
    document = client.call("optimize", args)["document"]
    client.call("import_program", {"document": document})
    client.call("get_program", {"program_id": "p", "include": ["demos"]})
assert "dspy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
