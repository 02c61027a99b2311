"""Each optimizer, on a real worker whose model is right only with what the optimizer adds."""

from __future__ import annotations

import pytest

from bridge import Client, errors
from learner import ROWS, SIGNATURE, TIP, Learner


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        yield client


@pytest.fixture
def learner():
    with Learner() as learner:
        yield learner


@pytest.fixture
def optimize(client, learner, request):
    """Return a function that optimizes the program `qa`, a `predict` on the learner."""
    session = request.node.name
    client.call("configure_lm", learner.settings(), session_id=session)
    client.call("create_program", {"id": "qa", "signature": SIGNATURE}, session_id=session)

    def optimize(optimizer, *, trainset=ROWS, **more):
        args = {"program_id": "qa", "optimizer": optimizer, "trainset": trainset, "metric": "exact_match", **more}
        result = client.call("optimize", args, session_id=session, timeout=60)
        run = {"program_id": result["program_id"], "inputs": ROWS[3]["inputs"]}
        if result["score"] == 1.0 and "model" not in more:
            assert client.call("execute_program", run, session_id=session)["outputs"]["answer"] == "London"
        return result

    return optimize


@pytest.mark.parametrize("optimizer", ["labeled_few_shot", "bootstrap_random_search"])
def test_demos(optimize, optimizer):
    result = optimize(optimizer)
    assert (result["score_before"], result["score"]) == (0.0, 1.0)
    assert result["changes"][0]["demos"]


def test_bootstrapped_demos_are_those_of_a_teacher(client, optimize, learner):
    """A model that is never right makes no demo."""
    result = optimize("bootstrap_few_shot", options={"max_labeled_demos": 0})
    assert (result["score"], result["changes"]) == (0.0, [])


@pytest.mark.parametrize("optimizer", ["copro", "mipro_v2", "gepa", "infer_rules"])
def test_instructions(client, optimize, optimizer, request):
    """The program itself stays as it is."""
    options = {"max_bootstrapped_demos": 0, "max_labeled_demos": 0} if optimizer == "mipro_v2" else {}
    result = optimize(optimizer, valset=ROWS[2:], options=options)
    assert (result["score_before"], result["score"]) == (0.0, 1.0)
    [change] = result["changes"]
    assert change["predictor"] == "self"
    assert change["instructions"]["before"] == "Answer."
    assert TIP in change["instructions"]["after"]
    own = {"program_id": "qa", "include": ["instructions"]}
    assert client.call("get_program", own, session_id=request.node.name)["instructions"] == "Answer."


@pytest.mark.parametrize("max_demos", [0, 2])
def test_simba(optimize, learner, max_demos):
    """Where answers differ from run to run, it finds rules, or demos."""
    learner.is_unsteady = True
    result = optimize("simba", options={"max_demos": max_demos, "threads": 1, "max_steps": 2})
    assert result["score"] == 1.0 > result["score_before"]


def test_steps_after_one_another(optimize):
    steps = [{"optimizer": "bootstrap_few_shot", "options": {"max_labeled_demos": 0}}, {"optimizer": "copro"}]
    result = optimize("better_together", options={"steps": steps})
    assert (result["score_before"], result["score"]) == (0.0, 1.0)
    assert result["changes"][0]["instructions"]["after"] == TIP


def test_the_nearest_rows_are_shown(client, optimize, learner, request):
    """The result is a program of the type knn, which has the whole trainset."""
    result = optimize("knn_few_shot", options={"k": 2})
    assert (result["score_before"], result["score"]) == (0.0, 1.0)
    assert len(result["changes"][0]["demos"]) == len(ROWS)
    own = result["document"]["metadata"]["bridge"]
    assert (own["program_type"], own["options"]) == ("knn", {"base": "predict", "k": 2})
    assert len(learner.requests[-1]["messages"]) == 2 + 2 * 2  # of the run of the result


def test_an_ensemble_votes(client, optimize, request):
    """It is a program of the type ensemble, and can be moved as a document."""
    result = optimize("ensemble", options={"size": 2})
    assert result["score"] == 1.0
    assert {change["predictor"] for change in result["changes"]} == {"programs[0]", "programs[1]"}
    again = {"document": result["document"], "program_id": "again"}
    client.call("import_program", again, session_id=request.node.name)
    run = {"program_id": "again", "inputs": ROWS[0]["inputs"]}
    assert client.call("execute_program", run, session_id=request.node.name)["outputs"] == {"answer": "Paris"}


def test_feedback_of_the_host_is_reflected_on(client, optimize, learner):
    """A metric of the host gets the calls of predictors, also of those that an optimizer has copied."""
    traces = []

    def score(expected, outputs, trace):
        traces.append(trace)
        is_right = expected == outputs
        return {"score": is_right, "feedback": "" if is_right else "A city is wanted."}

    client.register(metrics={"score": score})
    result = optimize("gepa", metric={"host": "score", "trace": True})
    assert result["score"] == 1.0
    asked = [str(body["messages"][-1]["content"]) for body in learner.requests]
    assert any("A city is wanted." in text for text in asked)
    assert any(traces)
    for step in (step for trace in traces for step in trace):
        assert step["predictor"] == "self"
        assert step["inputs"].keys() == {"question"}
        assert step["outputs"].keys() == {"answer"}


def test_a_judge_is_no_demo(client, optimize):
    """A metric that asks a model leaves no trace in the demos."""
    result = optimize("bootstrap_few_shot", metric="semantic_f1", options={"metric_threshold": 0.0})
    assert all(demo["outputs"].keys() <= {"answer"} for change in result["changes"] for demo in change["demos"])


def test_a_candidate_may_have_several_votes(optimize):
    """There are fewer candidates than votes if the search stops early."""
    of = {"optimizer": "bootstrap_random_search", "options": {"stop_at_score": 1.0}}
    result = optimize("ensemble", options={"size": 5, "of": of})
    assert result["score"] == 1.0
    assert result["document"]["metadata"]["bridge"]["options"]["n"] == 5


def test_models_of_options(client, optimize, learner, request):
    """Another model proposes the instructions; the program's own runs the rows."""
    with Learner() as other:
        settings = other.settings(name="proposer")
        client.call("configure_lm", settings, session_id=request.node.name)
        result = optimize("copro", options={"prompt_model": "proposer"})
        assert result["score"] == 1.0
        asked = [str(body["messages"][-1]["content"]) for body in other.requests]
    assert asked
    assert all("proposed_instruction" in text for text in asked)
    assert not any("proposed_instruction" in str(body["messages"][-1]["content"]) for body in learner.requests)


def test_a_model_that_is_not_configured_is_named(optimize):
    step = {"optimizer": "copro", "options": {"prompt_model": "strong"}}
    with pytest.raises(errors.LMNotConfigured, match=r"args.options.steps\[0\].options.prompt_model: .* strong"):
        optimize("better_together", options={"steps": [step]})


def test_the_model_of_the_call(client, optimize, learner, request):
    with Learner() as other:
        client.call("configure_lm", other.settings(name="other"), session_id=request.node.name)
        optimize("labeled_few_shot", model="other")
        assert other.requests


def test_rollouts_are_not_answered_from_the_cache(client, optimize, learner, request):
    """With a cache, the rounds of one row are still different requests."""
    learner.is_unsteady = True
    client.call("configure_lm", learner.settings(cache=100), session_id=request.node.name)
    result = optimize("bootstrap_few_shot", options={"max_rounds": 3, "max_labeled_demos": 0})
    assert result["changes"][0]["demos"]


def test_proposals_are_not_answered_from_the_cache(client, optimize, learner, request):
    """Several instructions are proposed by equal requests."""
    client.call("configure_lm", learner.settings(cache=100), session_id=request.node.name)
    optimize("copro", options={"breadth": 5, "depth": 1})
    proposals = [body for body in learner.requests if "proposed_instruction" in str(body["messages"])]
    assert len(proposals) == 4
    assert proposals[1:] == proposals[:-1]


def test_a_model_of_the_host_gets_the_demos(client, optimize, request):
    """It is asked like any other model."""
    asked = []

    def model(messages):
        asked.append(len(messages))
        place = next(row["outputs"]["answer"] for row in ROWS if row["inputs"]["question"] in messages[-1]["content"])
        return f"[[ ## answer ## ]]\n{place if len(messages) > 2 else 'unknown'}"

    client.register(models={"guide": model})
    result = optimize("labeled_few_shot", model="host/guide", options={"k": 1})
    assert (result["score_before"], result["score"]) == (0.0, 1.0)
    assert sorted(asked) == [2] * len(ROWS) + [4] * len(ROWS)
