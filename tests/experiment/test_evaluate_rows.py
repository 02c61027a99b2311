"""The command evaluate on several workers: the same score as in one call, and a file of results."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from bridge import Client, errors
from bridge.experiment.rows import Rows
from bridge.experiment.scores import Kinds, Scores
from data_sets import ROW, Model, numbered, results, write_program, write_rows

FIELDS = {
    "inputs": [{"name": "question"}, {"name": "hint", "type": "optional<string>"}, {"name": "context"}],
    "outputs": [{"name": "answer"}, {"name": "place", "default": "Austria"}],
}
JUDGED = {"precision": 0.5, "recall": 1.0, "reasoning": "So-so.", "completeness": 0.5, "groundedness": 1.0,
          **dict.fromkeys(("ground_truth_key_ideas", "system_response_key_ideas", "discussion"), "-"),
          **dict.fromkeys(("ground_truth_claims", "system_response_claims"), "-"),
          "answer": "in Salzburg", "place": "Austria"}  # fmt: skip


def example(answer, **changes):
    inputs = {"question": "Where?", "context": "Mozart was born in Salzburg.", **changes.pop("inputs", {})}
    return {"inputs": inputs, "outputs": {"answer": answer, **changes}}


ONE_KIND = [example("Salzburg"), example("in Salzburg"), example(["Vienna", "Salzburg"]), example("Rome")]
KINDS = [*ONE_KIND, example("Salzburg", place="Austria"), example("Salzburg", inputs={"hint": "a city"})]
WITHOUT = [*ONE_KIND, {"inputs": ONE_KIND[0]["inputs"], "outputs": {"place": "Austria"}}]
FLAT = [{**each["inputs"], **each["outputs"]} for each in KINDS]


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        client.call("configure_lm", {"provider": "scripted", "answers": {"": JUDGED}})
        client.call("create_program", {"id": "program", "signature": FIELDS})
        yield client


def outcome(evaluate):
    try:
        return evaluate()
    except errors.InvalidArgs as error:
        return f"{error.code} {error.details['path'].partition('[')[0]}"


def by_rows(client, devset, metric, size):
    """Return the score by a call for each row, or for some, as the command makes them."""
    rows, kinds = Rows.of_list(devset), Kinds()
    rows.survey(visit=kinds.add)
    calls = Scores(metric, kinds)
    items = [calls.item(row) for row in rows]
    replies = [client.call(*calls.request(items[start : start + size], 2)) for start in range(0, len(items), size)]
    return pytest.approx(sum(each["score"] for reply in replies for each in reply["results"]) / len(items))


METRICS = ["exact_match", "f1", "contains", "passage_match", "semantic_f1", "complete_and_grounded", "json_equal"]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("named", [None, "answer"])
@pytest.mark.parametrize("devset", [ONE_KIND, KINDS, WITHOUT, FLAT], ids=["one kind", "kinds", "without", "flat"])
def test_scores_are_those_of_one_call(client, devset, metric, named):
    """Which fields a metric reads depends on all examples, and so does whether it can be used for them."""
    metric = {"name": metric, **({} if named is None else {"field": named})}
    args = {"program_id": "program", "metric": metric}
    whole = outcome(lambda: client.call("evaluate", {**args, "devset": devset})["score"])
    assert outcome(lambda: by_rows(client, devset, metric, 1)) == whole
    assert outcome(lambda: by_rows(client, devset, metric, 3)) == whole


def test_others_are_not_run_and_may_be_anything(client):
    args = {"program_id": "program", "metric": "exact_match", "devset": [example("in Salzburg")]}
    result = client.call("evaluate", {**args, "others": [{"colour": 1}, 3, example("x")], "include": ["usage"]})
    assert (result["score"], result["total"], len(result["results"][0]["usage"])) == (1.0, 1, 1)


def run(*arguments):
    command = [sys.executable, "-m", "bridge", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_an_evaluation_on_several_workers_is_continued(tmp_path):
    """Rows that fail count as 0, as in one call."""
    devset = [{"inputs": row, "outputs": {"answer": f"answer {number}"}} for number, row in enumerate(numbered(20))]
    devset[7]["outputs"]["answer"] = "something else"
    write_rows(tmp_path / "dev.jsonl", devset)
    with Model() as model:
        models = [model.settings()]
        document = write_program(tmp_path / "x.json", models=models, metric="exact_match", devset="dev.jsonl")
        arguments = (document, "--workers", "2", "--out", tmp_path / "scores.jsonl")
        model.refuse = lambda number: (401, {}, {"error": {"message": "no credit"}}) if number == 12 else None
        done = run(*arguments, "--concurrency", "1")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[1].startswith("evaluate: 12 of 20 rows have a result")
        model.refuse = lambda number: (400, {}, {"error": {"message": "too long"}}) if number == 12 else None
        done = run(*arguments, "--least", "0.95")
        assert (done.returncode, done.stderr) == (3, "evaluate: the score 0.900 is lower than 0.95\n")
        assert done.stdout.startswith("score 0.900 on 20 examples\n")
        assert '{"answer": "something else"}' in done.stdout
        assert "too long" in done.stdout
        found = results(tmp_path / "scores.jsonl")
        assert list(found) == list(range(20))
        assert found[3] == {"outputs": {"answer": "answer 3"}, "score": 1.0}
        assert (found[12]["score"], found[12]["error"]["code"]) == (0.0, "lm_error")
        assert {number: count for number, count in model.asked.items() if count > 1} == {12: 2}

        json_result = json.loads(run(document, "--workers", "1", "--json").stdout)
        one_call = json.loads(run(document, "--json").stdout)
        assert json_result["score"] == pytest.approx(one_call["score"])
        assert [each["score"] for each in json_result["results"]] == [each["score"] for each in one_call["results"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "magic"}, "args.metric: unknown metric 'magic'"),
        ({"metric": {"name": "f1", "field": "x"}}, "args.metric.field: no example has the output x"),
        ({"metric": None}, "evaluate needs metric"),
        ({"devset": []}, "evaluate needs at least one example"),
    ],
)
def test_what_is_wrong_with_all_rows_is_said_once(tmp_path, changes, message):
    devset = [{**row, "answer": "x"} for row in numbered(3)]
    document = write_program(tmp_path / "x.json", **{"metric": "f1", "devset": devset, **changes})
    done = run(document, "--workers", "1")
    assert (done.returncode, done.stdout) in ((1, ""), (2, ""))
    assert message in done.stderr.splitlines()[0]


def test_each_flag_of_a_data_set_is_heeded_without_the_others(tmp_path):
    rows = [{**ROW, "colour": "red", "answer": "Salzburg"}] * 5
    document = write_program(tmp_path / "x.json", metric="exact_match", devset=["x", *rows])
    done = run(document, "--max-errors", "1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("evaluate: 1 rows have failed; the last one: invalid_args: the row is not a map\n")
