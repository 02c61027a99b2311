"""Pipelines of programs, through a worker over a pipe."""

from __future__ import annotations

import pytest

from dspy_worker import QA

DRAFT = {"inputs": [{"name": "question"}], "outputs": [{"name": "draft"}]}
FINAL = {"inputs": [{"name": "question"}, {"name": "draft"}], "outputs": [{"name": "answer"}]}
NUMBER = {"inputs": [{"name": "question"}], "outputs": [{"name": "number", "type": "integer"}]}


def stage(name, signature, **more):
    return {"name": name, "signature": signature, **more}


def fields(**types):
    return [{"name": name, "type": type} for name, type in types.items()]


def signature(inputs, outputs):
    return {"inputs": fields(**inputs), "outputs": fields(**outputs)}


class TestRuns:
    def test_outputs_feed_inputs_of_the_same_name(self, worker):
        """The order of the stages in the list does not matter."""
        worker.script({"draft": "a town"}, {"reasoning": "r", "answer": "Salzburg"})
        final = stage("final", FINAL, program_type="chain_of_thought")
        worker.create("pipeline", stages=[final, stage("first", DRAFT)])
        assert worker.run() == {"answer": "Salzburg"}
        assert [(each["message"], each["done"], each["total"]) for each in worker.named("progress")] == [
            ("first", 1, 2),
            ("final", 2, 2),
        ]
        assert [each["predictor"] for each in worker.named("status")] == ["first", "final.predict"]

    def test_stages_may_be_programs_of_the_session(self, worker):
        """They are copied: what becomes of them later does not matter, and what they have learned comes along."""
        worker.ask("create_program", id="one", signature=DRAFT, demos=[{"question": "q", "draft": "d"}])
        worker.create("pipeline", stages={"first": {"program": "one"}, "final": {"signature": FINAL}})
        worker.ask("delete_program", program_id="one")
        found = worker.ask("get_program", program_id="p", include=["demos"])
        assert found["predictors"]["first"]["demos"] == [{"inputs": {"question": "q"}, "outputs": {"draft": "d"}}]
        worker.script({"draft": "d"}, {"answer": "a"})
        assert worker.run() == {"answer": "a"}

    def test_sources_may_be_named(self, worker):
        first = stage("first", QA)
        second = stage("second", QA, inputs={"question": "first.answer"})
        worker.create("pipeline", stages=[first, second])
        worker.script({"answer": "a"}, {"answer": "b"})
        assert worker.run() == {"answer": "b"}, "the output that no other stage uses"
        both = {"inputs": QA["inputs"], "outputs": fields(early="string", late="string")}
        worker.create(
            "pipeline", both, stages=[first, second], outputs={"early": "first.answer", "late": "second.answer"}
        )
        worker.script({"answer": "a"}, {"answer": "b"})
        assert worker.run() == {"early": "a", "late": "b"}

    def test_names_of_fields_may_be_any_text(self, worker):
        first = stage("first", signature({"the question": "string"}, {"self": "integer"}))
        last = stage("last", signature({"self": "integer"}, {"an answer": "list<integer>"}))
        worker.create(
            "pipeline", signature({"the question": "string"}, {"an answer": "list<integer>"}), stages=[first, last]
        )
        worker.script({"self": "3"}, {"an answer": "[1, 2]"})
        assert worker.run(inputs={"the question": "?"}) == {"an answer": [1, 2]}

    def test_values_are_checked_where_types_do_not_tell(self, worker):
        """What a model wrote for an output of any type may be no value of the next stage's input."""
        first = stage("first", signature({"question": "string"}, {"x": "any"}))
        last = stage("last", signature({"x": "integer"}, {"answer": "string"}))
        worker.create("pipeline", stages=[first, last])
        worker.script({"x": '"many"'})
        reply = worker.call("execute_program", program_id="p", inputs={"question": "?"})
        assert (reply["code"], reply["details"]["lm_code"]) == ("lm_error", "type_clash")
        assert "first.x" in reply["error"]

    def test_a_stage_may_be_of_any_type(self, worker):
        inner = stage("vote", DRAFT, program_type="majority", n=2)
        worker.create("pipeline", stages=[inner, stage("final", FINAL)])
        worker.script({"draft": "x"}, {"draft": "x"}, {"answer": "a"})
        assert worker.run() == {"answer": "a"}

    def test_a_stage_may_search_an_index(self, worker):
        """Retrieval and an answer from what it finds, without a second system."""
        texts = ["The Louvre is a museum in Paris.", "Mozart was born in Salzburg."]
        worker.ask("create_index", index_id="places", texts=texts)
        answer = {"inputs": fields(question="string", passages="list<string>"), "outputs": [{"name": "answer"}]}
        search = {"name": "find", "index": "places", "k": 1, "inputs": {"query": "question"}}
        worker.create("pipeline", stages=[search, stage("answer", answer)])
        worker.ask("configure_lm", provider="offline")
        assert worker.run("Where is the Louvre?") == {"answer": "Paris"}

    def test_an_optional_input_without_a_source_is_null(self, worker):
        last = stage("last", signature({"question": "string", "hint": "optional<string>"}, {"answer": "string"}))
        worker.create("pipeline", stages=[last])
        worker.script({"answer": "a"})
        assert worker.run() == {"answer": "a"}

    def test_a_document_has_all_stages(self, worker):
        """It is created again without the programs that were copied."""
        worker.ask("create_program", id="one", signature=DRAFT)
        worker.create("pipeline", stages=[{"name": "first", "program": "one"}, stage("final", FINAL)])
        document = worker.ask("export_program", program_id="p")["document"]
        worker.call("cleanup")
        worker.ask("import_program", document=document, program_id="p")
        worker.script({"draft": "d"}, {"answer": "a"})
        assert worker.run() == {"answer": "a"}


@pytest.mark.parametrize(
    ("stages", "path", "words"),
    [
        ([], "args.stages", "1 to 32 stages"),
        ([stage("a", DRAFT)] * 2, "args.stages[1].name", "a second stage"),
        ([stage("no name", DRAFT)], "args.stages[0].name", "cannot be the name"),
        ([stage("forward", DRAFT)], "args.stages[0].name", "cannot be the name"),
        ([{"name": "a"}], "args.stages[0]", "names a program, or has a signature"),
        ([{"signature": DRAFT}], "args.stages[0]", "needs a name"),
        ([stage("a", DRAFT, colour="red")], "args.stages[0]", "unknown field `colour`"),
        ([stage("a", DRAFT, n=3)], "args.stages[0].n", "only for programs of type"),
        ([stage("a", DRAFT, program_type="tree")], "args.stages[0].program_type", "unknown program type"),
        ([stage("a", DRAFT, program_type="pipeline")], "args.stages[0].program_type", "and name it here"),
        ([stage("a", QA, program_type="knn")], "args.stages[0].program_type", "knn needs demos"),
        ({"a": stage("b", QA)}, "args.stages.a.name", "'b' is the stage 'a'"),
        ([stage("a", {"inputs": []})], "args.stages.a.signature.outputs", "outputs"),
        ([stage("a", DRAFT, program="x")], "args.stages[0].signature", "not for a stage that names a program"),
        ([stage("a", QA, inputs={"question": "b.answer"})], "args.stages.a.inputs.question", "no stage 'b.answer'"),
        ([stage("a", QA, inputs={"question": "a.other"})], "args.stages.a.inputs.question", "has no output 'other'"),
        ([stage("a", QA, inputs={"x": "question"})], "args.stages.a.inputs.x", "has no input 'x'"),
        ([stage("a", FINAL)], "args.stages.a.inputs.draft", "nothing has an output"),
        ([stage("a", QA), stage("b", QA)], "args.outputs.answer", "could be a.answer or b.answer"),
        ([stage("a", NUMBER)], "args.outputs.answer", "no stage has an output 'answer'"),
        (
            [stage("a", NUMBER), stage("b", signature({"number": "list<string>"}, {"answer": "string"}))],
            "args.stages.b.inputs.number",
            "a.number is of the type integer, not list<string>",
        ),
        (
            [
                stage("a", signature({"question": "string", "y": "string"}, {"x": "string"})),
                stage("b", signature({"x": "string"}, {"y": "string", "answer": "string"})),
            ],
            "args.stages",
            "wait for each other: a, b",
        ),
        ([stage("a", QA, inputs={"question": "a.answer"})], "args.stages", "wait for each other: a"),
        ([stage("a", signature({}, {"answer": "string"}))], "args.signature", "no stage uses the input 'question'"),
        ([stage("a", QA), stage("b", DRAFT)], "args.stages.b", "nothing uses an output of this stage"),
    ],
)
def test_wrong_pipelines_are_refused(worker, stages, path, words):
    """When they are created, with the path of what is wrong."""
    code, error, found = worker.refused("create_program", signature=QA, program_type="pipeline", stages=stages)
    assert (code, found) == ("invalid_args", path), error
    assert words in error


def test_a_stage_may_be_a_pipeline(worker):
    """All stages are counted, so that pipelines of pipelines remain small."""
    worker.create("predict")
    worker.script(*[{"answer": "a"}] * 16)
    both = [{"name": "a", "program": "p"}, {"name": "b", "program": "p", "inputs": {"question": "a.answer"}}]
    for _ in range(4):
        worker.create("pipeline", stages=both, outputs={"answer": "b.answer"})
    assert worker.run() == {"answer": "a"}
    assert len(worker.named("status")) == 16
    args = {"signature": QA, "program_type": "pipeline", "stages": both, "outputs": {"answer": "b.answer"}}
    code, error, _ = worker.refused("create_program", **args)
    assert (code, "1 to 32 stages" in error) == ("invalid_args", True)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"program_type": "tree"}, "program_type"),
        ({"program_type": "code_act"}, "program_type"),
        ({"inputs": {"question": "a.answer"}}, "stages"),
        ({"program_type": "majority", "options": {"base": "tree"}}, "base"),
        ({"signature": 5}, "signature"),
    ],
)
def test_documents_with_wrong_stages_are_refused(worker, change, path):
    """Also if the stage is one of a pipeline in the pipeline."""
    worker.create("pipeline", stages=[stage("a", QA)])
    worker.create("pipeline", stages=[{"name": "a", "program": "p"}])
    document = worker.ask("export_program", program_id="p")["document"]
    outer = document["metadata"]["bridge"]["options"]["stages"][0]
    outer["options"]["stages"][0] |= change
    code, error, found = worker.refused("import_program", document=document)
    assert (code, found.rpartition(".")[2]) == ("invalid_args", path), error


def test_an_unknown_index_is_refused(worker):
    stages = [{"name": "a", "index": "nowhere", "inputs": {"query": "question"}}]
    signature = {"inputs": QA["inputs"], "outputs": fields(passages="list<string>")}
    refused = worker.refused("create_program", signature=signature, program_type="pipeline", stages=stages)
    assert (refused[0], refused[2]) == ("invalid_args", "args.stages[0].index")


def test_an_unknown_program_is_not_found(worker):
    stages = [{"name": "a", "program": "nobody"}]
    code, error, _ = worker.refused("create_program", signature=QA, program_type="pipeline", stages=stages)
    assert (code, "nobody" in error) == ("program_not_found", True)
