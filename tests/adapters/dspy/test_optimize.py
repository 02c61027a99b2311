"""The command optimize, on a real worker."""

from __future__ import annotations

import pytest

from bridge import Client, errors

SIGNATURE = {
    "description": "Answer the question.",
    "inputs": [{"name": "question"}, {"name": "passage"}],
    "outputs": [{"name": "answer"}],
}
PLACES = {"Louvre": "Paris", "Prado": "Madrid", "Uffizi": "Florence", "Tate": "London", "Met": "New York"}
ROWS = [
    {
        "inputs": {"question": f"Where is the {name}?", "passage": f"The {name} is in {place}."},
        "outputs": {"answer": place},
    }
    for name, place in PLACES.items()
]


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        yield client


@pytest.fixture
def program(client, request):
    """Return the name of a session with the program `qa`, on the offline model."""
    session = request.node.name
    client.call("configure_lm", {"provider": "offline"}, session_id=session)
    create = {"id": "qa", "signature": SIGNATURE, "program_type": "chain_of_thought"}
    client.call("create_program", create, session_id=session)
    return session


def optimize(client, session, optimizer="labeled_few_shot", **args):
    args = {"program_id": "qa", "optimizer": optimizer, "trainset": ROWS, "metric": "exact_match", **args}
    return client.call("optimize", args, session_id=session, timeout=60)


def test_labeled_few_shot_adds_rows_of_the_trainset(client, program):
    result = optimize(client, program, options={"k": 2}, save_as="better")
    assert result["program_id"] == "better"
    assert (result["score_before"], result["score"]) == (1.0, 1.0)
    [change] = result["changes"]
    assert change["predictor"] == "predict"
    assert len(change["demos"]) == 2
    assert all(demo in ROWS for demo in change["demos"])
    run = {"program_id": "better", "inputs": ROWS[0]["inputs"]}
    assert client.call("execute_program", run, session_id=program)["outputs"]["answer"] == "Paris"


def test_bootstrap_few_shot_adds_runs_that_the_metric_approves_of(client, program):
    result = optimize(client, program, "bootstrap_few_shot", options={"max_bootstrapped_demos": 2})
    [change] = result["changes"]
    assert sum("reasoning" in demo["outputs"] for demo in change["demos"]) == 2


def test_seeds_choose(client, program):
    """Equal seeds choose equal demos, others other ones."""
    first, second, other = (
        optimize(client, program, options={"k": 2, "seed": seed})["changes"][0]["demos"] for seed in (1, 1, 2)
    )
    assert first == second != other


def test_progress(client, program):
    args = {"program_id": "qa", "optimizer": "bootstrap_random_search", "trainset": ROWS, "metric": "exact_match"}
    args["options"] = {"num_candidates": 1, "threads": 1}
    with client.stream("optimize", args, session_id=program, timeout=60) as stream:
        events = [data for event, data in stream if event == "progress"]
        stream.result()
    phases = [event["phase"] for event in events]
    assert list(dict.fromkeys(phases)) == ["baseline", "candidate", "bootstrap", "result"]
    assert {event["candidate"] for event in events if event["phase"] == "candidate"} == {1, 2, 3, 4}
    assert events[0].items() >= {"phase": "baseline", "done": 1, "total": 5, "score": 1.0}.items()
    assert events[-1] == {"phase": "result", "done": 5, "total": 5, "score": 1.0, "best": 1.0}


def test_the_document_of_the_result_can_be_imported(client, program):
    result = optimize(client, program, options={"k": 2}, save_as="better")
    again = {"document": result["document"], "program_id": "again"}
    client.call("import_program", again, session_id=program)
    found = [
        client.call("get_program", {"program_id": name, "include": ["demos"]}, session_id=program)["demos"]
        for name in ("better", "again")
    ]
    assert found[0] == found[1] == result["changes"][0]["demos"]


def test_the_result_replaces_the_program_if_that_is_wanted(client, program):
    assert optimize(client, program, replace=True)["program_id"] == "qa"
    assert client.call("list_programs", session_id=program)["total_count"] == 1
    assert optimize(client, program)["program_id"] != "qa"
    assert client.call("list_programs", session_id=program)["total_count"] == 2


@pytest.mark.parametrize(
    ("args", "path", "message"),
    [
        ({"optimizer": "magic"}, "args.optimizer", "known: labeled_few_shot, bootstrap_few_shot"),
        ({"options": {"n": 3}}, "args.options.n", "known: k, max_errors, seed, threads"),
        ({"options": {"k": -1}}, "args.options.k", ">= 0"),
        (
            {"optimizer": "gepa", "options": {"auto": "light", "max_full_evals": 2}},
            "args.options.max_full_evals",
            "auto",
        ),
        (
            {"optimizer": "ensemble", "options": {"of": {"optimizer": "gepa"}}},
            "args.options.of.optimizer",
            "gepa has no candidates",
        ),
        (
            {"optimizer": "better_together", "options": {"steps": [{"optimizer": "x"}]}},
            "args.options.steps[0].optimizer",
            "x",
        ),
        (
            {"optimizer": "better_together", "options": {"steps": [{"optimizer": "copro", "options": {"k": 1}}]}},
            "args.options.steps[0].options.k",
            "unknown: k",
        ),
        (
            {"optimizer": "better_together", "options": {"steps": [{"optimizer": "knn_few_shot"}]}},
            "args.options.steps[0].optimizer",
            "another type",
        ),
        (
            {
                "optimizer": "better_together",
                "options": {"steps": [{"optimizer": "infer_rules"}]},
                "trainset": ROWS[:1],
            },
            "args.trainset",
            "too few",
        ),
        ({"trainset": []}, "args.trainset", "at least one"),
        ({"trainset": ROWS[:1] * 10_001}, "args.trainset", "10000"),
        ({"trainset": [{"inputs": {"question": "?"}}]}, "args.trainset[0].inputs.passage", "missing"),
        ({"trainset": ROWS[:1], "optimizer": "infer_rules"}, "args.trainset", "too few"),
        ({"valset": [{"inputs": {}}]}, "args.valset[0].inputs.question", "missing"),
        ({"metric": "magic"}, "args.metric", "known: exact_match"),
        ({"epochs": 3}, "args.epochs", "unknown"),
    ],
)
def test_bad_args_are_refused_before_any_model_is_called(client, program, args, path, message):
    with pytest.raises(errors.InvalidArgs, match=message.replace("[", "\\[")) as refused:
        optimize(client, program, **args)
    assert refused.value.details["path"] == path


def test_an_id_that_is_taken_is_refused(client, program):
    with pytest.raises(errors.ProgramExists):
        optimize(client, program, save_as="qa")
    with pytest.raises(errors.ProgramNotFound):
        optimize(client, program, program_id="other")


def test_in_a_durable_session_the_result_survives_the_worker(tmp_path):
    flags = ["--store", f"sqlite:{tmp_path}/sessions.db"]
    with Client.start(flags=flags) as client:
        client.call("create_session", {"durable": True}, session_id="ann")
        client.call("configure_lm", {"provider": "offline"}, session_id="ann")
        client.call("create_program", {"id": "qa", "signature": SIGNATURE}, session_id="ann")
        optimize(client, "ann", options={"k": 2}, save_as="better")
        client.kill()
    with Client.start(flags=flags) as client:
        found = client.call("get_program", {"program_id": "better", "include": ["demos"]}, session_id="ann")
        assert len(found["demos"]) == 2
