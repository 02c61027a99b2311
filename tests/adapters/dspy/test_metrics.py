"""The metrics that every worker has: what they compare, and how."""

from __future__ import annotations

import pytest

from bridge import Client, errors

WAIT = 30.0  # seconds, for what must happen


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        yield client


def score(client, metric, expected, answer, type="any", expects=None, **more):
    """Return the score of a program whose model answers with `answer`. more: inputs besides the question."""
    inputs = {"question": "Who?", **more}
    signature = {
        "inputs": [{"name": name, "type": "any"} for name in inputs],
        "outputs": [{"name": "answer", "type": type}],
    }
    create = {"id": "p", "signature": signature, "if_exists": "replace"}
    client.call("create_program", create)
    client.call("configure_lm", {"provider": "scripted", "answers": [{"answer": answer}]})
    devset = [{"inputs": inputs, "outputs": {"answer": expected}}]
    result = client.call("evaluate", {"program_id": "p", "metric": metric, "devset": devset}, timeout=WAIT)
    assert result["failed"] == 0, result
    return result["score"]


@pytest.mark.parametrize(
    ("expected", "answer", "type", "found"),
    [
        ("Paris", "paris.", "string", 1),
        ("The Louvre", "louvre", "string", 1),
        ("Paris", "Paris, France", "string", 0),
        ("", "the", "string", 1),
        (3, "3", "integer", 1),
        (3, "4", "integer", 0),
        (1, "true", "any", 0),
        (0.5, "0.5", "float", 1),
        (True, "yes", "boolean", 1),
        (["a", "b"], '["A", "B."]', "list<string>", 1),
        (["a", "b"], '["b", "a"]', "list<string>", 0),
        (["Paris", "Rome"], "rome", "any", 1),
        (["Paris", "Rome"], "rome", "string", 1),
        ([3, 4], "4", "integer", 1),
        ([3, 4], "5", "integer", 0),
        ({"a": "x"}, '{"a": "X"}', "any", 1),
        ({"a": 1}, '{"a": 1, "b": 2}', "any", 0),
        (None, "null", "optional<integer>", 1),
        ("2024-02-29", "2024-02-29", "date", 1),
        ("2024-02-29", "2024-03-01", "date", 0),
        ("0.10", "0.10", "decimal", 1),
        ("+", "+", "string", 1),
        ("+", "-", "string", 0),
    ],
)
def test_exact_match(client, expected, answer, type, found):
    """Texts as DSPy compares them, other values by their value; a list for one value has alternatives."""
    assert score(client, "exact_match", expected, answer, type) == found


@pytest.mark.parametrize(
    ("expected", "answer", "type", "found"),
    [
        ("Paris", "Eiffel Tower is in Paris", "string", 1 / 3),
        ("Paris", "paris", "string", 1),
        ("Paris", "Rome", "string", 0),
        ("", "-", "string", 0),
        ("+", "+", "string", 1),
        (["Rome", "in Paris"], "Paris", "any", 2 / 3),
        (["x b", "c"], '["c b"]', "list<string>", 0.8),
        (12, "12", "integer", 1),
    ],
)
def test_f1(client, expected, answer, type, found):
    """The harmonic mean of the shares of words that both texts have."""
    assert score(client, "f1", expected, answer, type) == pytest.approx(found)


@pytest.mark.parametrize(
    ("expected", "answer", "type", "found"),
    [
        ("paris", "It is in Paris, France.", "string", 1),
        ("Rome", "It is in Paris, France.", "string", 0),
        (["Rome", "France"], "It is in Paris, France.", "any", 1),
        (["a"], '["A", "b"]', "list<string>", 1),
        (["a", "c"], '["a", "b"]', "list<string>", 0),
        (42, "it is 42", "any", 1),
        ("+", "2 + 2", "string", 1),
        ("+", "2 - 2", "string", 0),
    ],
)
def test_contains(client, expected, answer, type, found):
    """A part of a text, or items of a list."""
    assert score(client, "contains", expected, answer, type) == found


@pytest.mark.parametrize(
    ("expected", "answer", "type", "found"),
    [
        ({"b": [1, {"c": None}], "a": 2.0}, '{"a": 2, "b": [1.0, {"c": null}]}', "any", 1),
        ({"a": 1}, '{"a": true}', "any", 0),
        ('{"a": 1}', '{ "a": 1.0 }', "string", 1),
        ("Paris", "paris", "string", 0),
        ("NaN", "NaN", "string", 1),
        ([1, 2], "[2, 1]", "list<integer>", 0),
        ("[" * 900, "[" * 900, "string", 1),
    ],
)
def test_json_equal(client, expected, answer, type, found):
    """Values of JSON, and texts that are JSON."""
    assert score(client, "json_equal", expected, answer, type) == found


@pytest.mark.parametrize(
    ("passages", "found"),
    [
        (["Rome is old.", "The Eiffel Tower is in Paris."], 1),
        ("The Eiffel Tower is in Paris.", 1),
        (["The Eiffel Towers are in Paris."], 0),
        ([], 0),
    ],
)
def test_passage_match(client, passages, found):
    """The passages are those of the program's inputs or outputs."""
    assert score(client, "passage_match", "Eiffel tower", "whatever", context=passages) == found
    metric = {"name": "passage_match", "context": "found"}
    assert score(client, metric, "Eiffel tower", "whatever", found=passages) == found


TWO = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}, {"name": "b", "type": "integer"}]}


@pytest.fixture
def two(client):
    """Return a function that evaluates a program of two outputs."""
    client.call("create_program", {"id": "two", "signature": TWO, "if_exists": "replace"})
    client.call("configure_lm", {"provider": "scripted", "answers": {"": {"a": "x", "b": 2}}})

    def evaluate(metric, *outputs):
        devset = [{"inputs": {"q": "?"}, "outputs": each} for each in outputs]
        return client.call("evaluate", {"program_id": "two", "metric": metric, "devset": devset}, timeout=WAIT)

    return evaluate


def test_the_field_is_the_only_expected_output(two):
    """Or the one that the metric names; json_equal compares all."""
    assert two("exact_match", {"b": 2}, {"b": 3})["score"] == 0.5
    assert two({"name": "exact_match", "field": "a"}, {"a": "x", "b": 7})["score"] == 1.0
    assert two("json_equal", {"a": "x", "b": 2}, {"a": "x", "b": 3}, {"a": "x"})["score"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("metric", "outputs", "path"),
    [
        ("exact_match", [{"a": "x", "b": 2}], "args.metric.field"),
        ("exact_match", [{"a": "x"}, {"b": 2}], "args.metric.field"),
        ("exact_match", [{}], "args.metric.field"),
        ("json_equal", [{}], "args.metric.field"),
        ({"name": "f1", "field": "c"}, [{"a": "x"}], "args.metric.field"),
        ({"name": "f1", "field": "a"}, [{"a": "x"}, {"b": 2}], "args.devset[1].outputs"),
        ("accuracy", [{"a": "x"}], "args.metric"),
        ({}, [{"a": "x"}], "args.metric"),
        ({"name": "f1", "host": "m"}, [{"a": "x"}], "args.metric.name"),
        ({"name": "f1", "trace": True}, [{"a": "x"}], "args.metric.trace"),
        ({"name": "f1", "context": "q"}, [{"a": "x"}], "args.metric.context"),
        ({"name": "f1", "kind": "q"}, [{"a": "x"}], "args.metric.kind"),
        ({"host": "m", "field": "a"}, [{"a": "x"}], "args.metric.field"),
        ({"name": "passage_match"}, [{"a": "x"}], "args.metric.context"),
        ({"name": "passage_match", "context": "z"}, [{"a": "x"}], "args.metric.context"),
        ({"name": "semantic_f1", "question": "z"}, [{"a": "x"}], "args.metric.question"),
        (3, [{"a": "x"}], "args.metric"),
    ],
)
def test_a_metric_that_cannot_compare_the_examples_is_refused(two, metric, outputs, path):
    """Before any model is called, with the path of what is wrong."""
    with pytest.raises(errors.InvalidArgs) as raised:
        two(metric, *outputs)
    assert raised.value.details["path"] == path


JUDGED = {
    "retrieved_context": {"reasoning": "-", "system_response_claims": "-", "discussion": "sound", "groundedness": 1.0},
    "completeness": {"reasoning": "-", "ground_truth_key_ideas": "-", "system_response_key_ideas": "-"}
    | {"discussion": "half of it", "completeness": 0.5},
    "precision": {"reasoning": "says more", "recall": 1.0, "precision": 0.5},
    "": {"text": "Paris, in France"},
}


@pytest.mark.parametrize(
    ("metric", "feedback"),
    [
        ({"name": "semantic_f1"}, "says more"),
        ({"name": "semantic_f1", "question": "passages"}, "says more"),
        ({"name": "complete_and_grounded", "context": "passages"}, "half of it\nsound"),
    ],
)
def test_a_model_judges(client, metric, feedback):
    """With DSPy's prompts, whatever the names of the fields are."""
    names = ("passages", "question")
    signature = {"inputs": [{"name": name} for name in names], "outputs": [{"name": "text"}]}
    client.call("create_program", {"id": "judged", "signature": signature, "if_exists": "replace"})
    client.call("configure_lm", {"provider": "scripted", "answers": JUDGED})
    inputs = {"question": "Where is the Louvre?", "passages": "The Louvre is in Paris."}
    devset = [{"inputs": inputs, "outputs": {"text": "Paris"}}]
    args = {"program_id": "judged", "metric": metric, "devset": devset}
    with client.stream("evaluate", args, timeout=WAIT) as stream:
        assert {event for event, _ in stream} == {"row", "progress"}
    result = stream.result()["results"][0]
    assert (result["score"], result["feedback"]) == (pytest.approx(2 / 3), feedback)


def test_a_judge_may_have_a_model_of_its_own(client):
    """By its name, or those of several in order."""
    signature = {"inputs": [{"name": "question"}], "outputs": [{"name": "text"}]}
    client.call("create_program", {"id": "judged", "signature": signature, "if_exists": "replace"})
    client.call("configure_lm", {"provider": "scripted", "answers": {"": {"text": "Paris"}}})
    client.call("configure_lm", {"name": "judge", "provider": "scripted", "answers": JUDGED})
    devset = [{"inputs": {"question": "Where is the Louvre?"}, "outputs": {"text": "Paris"}}]

    def evaluate(model):
        args = {"program_id": "judged", "metric": {"name": "semantic_f1", "model": model}, "devset": devset}
        return client.call("evaluate", args, timeout=WAIT)["results"][0]

    assert evaluate("judge")["feedback"] == "says more"
    assert evaluate({"models": ["judge"]})["feedback"] == "says more"
    with pytest.raises(errors.LMNotConfigured, match=r"args.metric.model: no model of the name none"):
        evaluate("none")
    with pytest.raises(errors.InvalidArgs) as raised:
        evaluate({"models": []})
    assert raised.value.details["path"] == "args.metric.model.models"
