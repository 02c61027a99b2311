"""Programs as documents: export, import, files in --state-dir, and documents that DSPy writes and reads."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import dspy
import pytest
from dspy.teleprompt import LabeledFewShot
from dspy.utils import DummyLM

from bridge import Client, errors
from bridge.adapters.dspy import state_files

SIGNATURE = {
    "description": "Answer.",
    "inputs": [{"name": "question"}],
    "outputs": [{"name": "answer", "type": "integer"}, {"name": "first name"}],
}
PLAIN = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer", "type": "integer"}]}
DEMOS = [{"inputs": {"question": "1+1?"}, "outputs": {"answer": 2}}, {"question": "2+2?", "answer": 4}]
MODULES = {
    "predict": lambda signature: dspy.Predict(signature),
    "chain_of_thought": lambda signature: dspy.ChainOfThought(signature),
    "react": lambda signature: dspy.ReAct(signature, [dspy.Tool(lambda: "", name="look", args={}, arg_types={})]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def worker(folder):
    with Client.start(flags=["--state-dir", str(folder)]) as worker:
        worker.call("register_tools", {"tools": [{"name": "look"}]})
        yield worker


def create(worker, program_type="predict", program_id=None, signature=PLAIN, demos=DEMOS):
    args = {"signature": signature, "program_type": program_type, "demos": demos, "if_exists": "replace"}
    return worker.call("create_program", {"id": program_id or program_type, **args})["program_id"]


def document_of(worker, program_id):
    return worker.call("export_program", {"program_id": program_id})["document"]


@pytest.mark.parametrize("program_type", MODULES)
def test_export_and_import(worker, program_type):
    """The imported program is equal: its document is the same, and it runs."""
    create(worker, program_type)
    document = document_of(worker, program_type)
    imported = worker.call("import_program", {"document": json.loads(json.dumps(document))})
    assert imported["status"] == "created"
    assert document_of(worker, imported["program_id"]) == document
    step = {"next_thought": "so", "next_tool_name": "finish", "next_tool_args": {}}
    answers = [step] * (program_type == "react") + [{"reasoning": "so", "answer": "7"}]
    worker.call("configure_lm", {"provider": "scripted", "answers": answers})
    result = worker.call("execute_program", {"program_id": imported["program_id"], "inputs": {"question": "?"}})
    assert result["outputs"]["answer"] == 7


@pytest.mark.parametrize("program_type", MODULES)
def test_a_saved_program_loads_in_dspy(worker, folder, program_type):
    """DSPy's own module gets the demos, and its prompt has them."""
    create(worker, program_type)
    worker.call("save_program", {"program_id": program_type, "path": f"some/folder/{program_type}.json"})
    module = MODULES[program_type]("question -> answer: int")
    module.load(folder / f"some/folder/{program_type}.json")
    writer = module.named_predictors()[-1][1]
    assert [demo["answer"] for demo in writer.demos] == [2, 4]
    model = DummyLM([{"reasoning": "so", "answer": "7"}])
    inputs = {"trajectory": "none"} if program_type == "react" else {}
    with dspy.context(lm=model):
        assert writer(question="3+4?", **inputs).answer == 7
    assert "2+2?" in str(model.history[-1]["messages"])


@pytest.mark.parametrize("program_type", MODULES)
def test_a_program_compiled_by_dspy_loads(worker, folder, program_type):
    """Its demos and instructions are those of the program; what is no field of the signature is named."""
    trainset = [dspy.Example(question="5?", answer=5, source="book").with_inputs("question")]
    compiled = LabeledFewShot(k=1).compile(MODULES[program_type]("question -> answer: int"), trainset=trainset)
    for _, predictor in compiled.named_predictors():
        predictor.signature = predictor.signature.with_instructions("Count.")
    compiled.save(folder / "compiled.json")
    create(worker, program_type, demos=[])
    loaded = worker.call("load_program", {"program_id": program_type, "path": "compiled.json"})
    assert loaded["status"] == "replaced"
    assert any(path.endswith(".demos[0].source") for path in loaded["ignored"])
    program = worker.call("get_program", {"program_id": program_type, "include": ["demos", "instructions"]})
    assert program["demos"] == [{"inputs": {"question": "5?"}, "outputs": {"answer": 5}}]
    assert program["instructions"] == "Count."
    assert [*program["predictors"]] == [name for name, _ in compiled.named_predictors()]


def test_an_export_of_one_worker_imports_in_another(worker):
    """Names of fields that DSPy does not accept are in the document as in prompts."""
    demos = [{"question": "1?", "answer": 1, "first name": "Ann"}]
    create(worker, "predict", "odd", SIGNATURE, demos)
    document = document_of(worker, "odd")
    assert document["demos"] == [{"question": "1?", "answer": 1, "first_name": "Ann"}]
    with Client.start() as other:
        other.call("import_program", {"document": document, "program_id": "odd"})
        assert document_of(other, "odd") == document
        program = other.call("get_program", {"program_id": "odd", "include": ["demos"]})
    assert program["demos"] == [{"inputs": {"question": "1?"}, "outputs": {"answer": 1, "first name": "Ann"}}]


def test_if_exists(worker):
    """As in create_program."""
    create(worker, "predict", "twice")
    args = {"document": document_of(worker, "twice"), "program_id": "twice"}
    with pytest.raises(errors.ProgramExists):
        worker.call("import_program", args)
    assert worker.call("import_program", {**args, "if_exists": "keep"})["status"] == "exists"
    assert worker.call("import_program", {**args, "if_exists": "replace"})["status"] == "replaced"


def test_documents_have_no_models(worker):
    """Neither settings nor keys of models leave the worker with a program."""
    secret = "sk-secret-0123456789"
    worker.call("configure_lm", {"model": "openai/gpt-4o", "api_key": secret})
    create(worker)
    document = document_of(worker, "predict")
    assert secret not in json.dumps(document)
    assert document["lm"] is None


def test_the_model_of_a_document_is_named_as_ignored(worker):
    """DSPy saves the model of a predictor that has one of its own."""
    create(worker)
    document = {**document_of(worker, "predict"), "lm": {"model": "openai/x", "api_base": "http://evil"}, "train": [1]}
    loaded = worker.call("import_program", {"document": document, "program_id": "predict", "if_exists": "replace"})
    assert loaded["ignored"] == ["args.document.train", "args.document.lm"]
    assert document_of(worker, "predict")["lm"] is None


def changed(document, path, value):
    """Return a copy of `document` with `value` at the path."""
    found = part = copy.deepcopy(document)
    *parents, last = path
    for each in parents:
        part = part[each]
    part[last] = value
    return found


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["config"], {"api_base": "http://evil"}, "the predictor config is unknown"),
        (["predict", "config"], {"api_base": "http://evil"}, "unknown field `config`"),
        (["predict", "forward"], "x", "unknown field `forward`"),
        (["predict", "demos"], {}, "Expected `array`"),
        (["predict", "demos", 0], 7, "Expected `object`"),
        (["predict", "demos", 0, "answer"], "x", "expected integer"),
        (["predict", "signature", "instructions"], 7, "Expected `str`"),
        (["predict", "signature", "fields"], [], "0 fields, but the program has 3: question, reasoning, answer"),
        (
            ["predict", "signature", "fields", 0],
            {"prefix": "Town:", "description": "x"},
            "'Town:' is not the program's",
        ),
        (["predict", "signature", "code"], "x", "unknown field `code`"),
        (["predict"], None, "Expected `object`"),
        (["metadata"], None, "not a program"),
        (["metadata", "more"], 1, "unknown field `more`"),
        (["metadata", "dependency_versions", "dspy"], "2.6.0", "saved with DSPy 2.6.0, which this worker's DSPy"),
        (["metadata", "bridge", "version"], 2, "2 is not known: this worker reads version 1"),
        (["metadata", "bridge", "model"], "gpt", "unknown field `model`"),
        (["metadata", "bridge", "program_type"], "magic", "unknown program type 'magic'"),
        (["metadata", "bridge", "signature"], {"inputs": []}, "missing required field `outputs`"),
    ],
)
def test_a_wrong_document_is_refused(worker, path, value, message):
    """The error says where and why, and there is no program afterwards."""
    create(worker, "chain_of_thought")
    document = changed(document_of(worker, "chain_of_thought"), path, value)
    with pytest.raises(errors.InvalidArgs) as caught:
        worker.call("import_program", {"document": document, "program_id": "wrong"})
    assert message in str(caught.value)
    assert caught.value.details["path"].startswith("args.document")
    with pytest.raises(errors.ProgramNotFound):
        worker.call("get_program", {"program_id": "wrong"})


@pytest.mark.parametrize("document", [None, 7, "x", [], {}, {"metadata": {}}, {"metadata": {"bridge": None}}])
def test_what_is_no_document(worker, document):
    """Nothing else is accepted."""
    with pytest.raises(errors.InvalidArgs):
        worker.call("import_program", {"document": document})


def test_a_missing_predictor(worker):
    """A document must have all predictors of the program."""
    create(worker, "react")
    document = document_of(worker, "react")
    del document["extract.predict"]
    with pytest.raises(errors.InvalidArgs, match=r"the predictor extract\.predict is missing"):
        worker.call("import_program", {"document": document})


def test_another_version_of_dspy_is_named(worker):
    """The program loads, with a warning."""
    create(worker)
    document = changed(document_of(worker, "predict"), ["metadata", "dependency_versions", "dspy"], "3.1.0")
    loaded = worker.call("import_program", {"document": document})
    assert loaded["warnings"] == [f"saved with DSPy 3.1.0; this worker has {dspy.__version__}"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_iters", 0, "max_iters: Expected `int` >= 1"),
        ("max_iters", 10**9, "max_iters: Expected `int` <= 100"),
        ("tools", [{"name": "a"}, {"name": "a"}], "tools[1].name: a second tool 'a'"),
        ("tools", [{"name": " "}], "tools[0].name: a tool's name has"),
        ("tools", [{"name": "a", "args": {"x": {"type": "magic"}}}], "tools[0].args"),
        ("tools", [{"name": "a", "code": "x"}], "unknown field `code`"),
    ],
)
def test_tools_and_iterations_are_checked_as_those_of_create_program(worker, name, value, message):
    create(worker, "react")
    document = changed(document_of(worker, "react"), ["metadata", "bridge", name], value)
    with pytest.raises(errors.InvalidArgs) as caught:
        worker.call("import_program", {"document": document, "program_id": "wrong"})
    assert message in str(caught.value)


def test_tools_of_stages_are_checked(worker):
    create(worker, "react")
    stages = {"first": {"program": "react"}}
    args = {"id": "piped", "signature": PLAIN, "program_type": "pipeline", "stages": stages}
    worker.call("create_program", args)
    path = ["metadata", "bridge", "options", "stages", 0]
    for name, value in (("tools", [{"name": "a"}, {"name": "a"}]), ("max_iters", 0)):
        document = changed(document_of(worker, "piped"), [*path, name], value)
        with pytest.raises(errors.InvalidArgs, match=name):
            worker.call("import_program", {"document": document, "program_id": "wrong"})


def test_a_document_of_knn_has_demos(worker):
    """As create_program demands."""
    create(worker, "knn", "nearest")
    document = changed(document_of(worker, "nearest"), ["demos"], [])
    with pytest.raises(errors.InvalidArgs, match="knn needs demos"):
        worker.call("import_program", {"document": document, "program_id": "wrong"})


def test_only_programs_that_use_tools_are_exported_with_tools(worker):
    create(worker, "predict")
    assert "tools" not in document_of(worker, "predict")["metadata"]["bridge"]


def test_demos_that_do_not_fit(worker):
    """The path names the demo and the field."""
    cases = [
        ([{"question": "x"}], "args.demos[0].answer"),
        ([*DEMOS, {"inputs": {"question": "x"}, "outputs": {"answer": "no"}}], "args.demos[2].outputs.answer"),
        ([{"inputs": {}, "outputs": {"answer": 1}}], "args.demos[0].inputs.question"),
        ([{"question": "x", "answer": 1, "more": 1}], "args.demos[0].more"),
        (["x"], "args.demos[0]"),
        ([{"inputs": {"question": "x"}, "outputs": []}], "args.demos[0].outputs"),
        ([{"inputs": {"question": "x"}, "outputs": {"answer": 1}, "id": 7}], "args.demos[0].id"),
        ([{"question": "x", "answer": 1, "reasoning": "x"}], "args.demos[0].reasoning"),
    ]
    for demos, path in cases:
        with pytest.raises(errors.InvalidArgs) as caught:
            worker.call("create_program", {"signature": PLAIN, "demos": demos})
        assert caught.value.details["path"] == path


def test_demos_and_devsets_may_leave_out_what_has_a_default(worker):
    """As runs may."""
    tone = {"name": "tone", "default": "dry"}
    signature = {"inputs": [{"name": "question"}, tone], "outputs": [{"name": "answer"}]}
    row = {"inputs": {"question": "Who?"}, "outputs": {"answer": "Goethe"}}
    create(worker, signature=signature, program_id="toned", demos=[row])
    shown = worker.call("get_program", {"program_id": "toned", "include": ["demos"]})["demos"]
    assert shown == [{"inputs": {"question": "Who?", "tone": "dry"}, "outputs": {"answer": "Goethe"}}]
    worker.call("configure_lm", {"provider": "scripted", "answers": {"": {"answer": "Goethe"}}})
    result = worker.call("evaluate", {"program_id": "toned", "devset": [row], "metric": "exact_match"})
    assert result["score"] == 1


def test_conversations_in_demos_have_the_names_of_the_host(worker):
    """Those that DSPy gets are of one worker only."""
    inputs = [{"name": "the question"}, {"name": "before", "type": "history"}]
    signature = {"inputs": inputs, "outputs": [{"name": "copy"}]}
    turn = {"the question": "Who?", "copy": "Goethe"}
    demo = {"inputs": {"the question": "When?", "before": [turn]}, "outputs": {"copy": "1808"}}
    create(worker, signature=signature, program_id="talk", demos=[demo])
    document = document_of(worker, "talk")
    assert document["demos"][0]["before"] == {"messages": [turn]}
    worker.call("import_program", {"document": document, "program_id": "talk again"})
    assert document_of(worker, "talk again")["demos"] == document["demos"]


def test_a_demo_may_have_reasoning(worker):
    """If the module has it."""
    create(worker, "chain_of_thought", "thinks", demos=[{"question": "1?", "answer": 1, "reasoning": "so"}])
    program = worker.call("get_program", {"program_id": "thinks", "include": ["demos"]})
    assert program["demos"] == [{"inputs": {"question": "1?"}, "outputs": {"answer": 1, "reasoning": "so"}}]


PATHS = ["", ".", "x", "x.pkl", ".json", "../x.json", "a/../../x.json", "/tmp/x.json", "a\0.json", "x" * 1000 + ".json"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_stay_in_the_folder(worker, path):
    """In both directions."""
    create(worker)
    for command in ("save_program", "load_program"):
        with pytest.raises(errors.InvalidArgs) as caught:
            worker.call(command, {"program_id": "predict", "path": path})
        assert caught.value.details["path"] == "args.path"


def test_symbolic_links_are_not_followed(worker, folder, tmp_path):
    """Neither a file nor a folder outside can be reached by one."""
    create(worker)
    (tmp_path / "secret.json").write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    (folder / "linked").symlink_to(tmp_path)
    for path in ("link.json", "linked/secret.json"):
        with pytest.raises(errors.InvalidArgs, match="cannot be read"):
            worker.call("load_program", {"program_id": "predict", "path": path})
    with pytest.raises(errors.InvalidArgs, match="cannot be written"):
        worker.call("save_program", {"program_id": "predict", "path": "linked/new.json"})
    worker.call("save_program", {"program_id": "predict", "path": "link.json"})
    assert (tmp_path / "secret.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a JSON document"),
        (b"\x80\x04K\x01.", "not a JSON document"),
        (b"[" * 10_000, "not a JSON document"),
        (b" " * (16 << 20) + b"1", "more than 16777216 bytes"),
        (b"{}", "not a program"),
    ],
)
def test_files_that_are_no_documents(worker, folder, data, message):
    """A pickle is no document either."""
    (folder / "bad.json").write_bytes(data)
    with pytest.raises(errors.InvalidArgs, match=message):
        worker.call("load_program", {"path": "bad.json"})
    assert worker.call("ping", {})


def test_a_folder_is_no_file(tmp_path):
    """The refused descriptor is closed."""
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(errors.InvalidArgs, match="not a regular file"):
        state_files.read(str(tmp_path), "folder.json")
    opened = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    assert str(tmp_path / "folder.json") not in opened


def test_a_file_that_could_not_be_read_is_not_written(tmp_path):
    data = b" " * (state_files.LARGEST + 1)
    with pytest.raises(errors.InvalidArgs, match="the limit of a file is 16777216"):
        state_files.write(str(tmp_path), "large.json", data)
    assert not [*tmp_path.iterdir()]
    assert state_files.write(str(tmp_path), "large.json", data[1:]) == state_files.LARGEST


def test_without_a_folder():
    """The operator decides whether there are files."""
    with Client.start() as worker:
        create(worker)
        for command in ("save_program", "load_program"):
            with pytest.raises(errors.NotAllowed, match="--state-dir"):
                worker.call(command, {"program_id": "predict", "path": "x.json"})


def test_demos_of_stages_have_the_fields_of_the_stage(worker):
    """A field of a stage may have the name of one of the pipeline's, and another type."""
    first = {
        "inputs": [{"name": "question"}],
        "outputs": [{"name": "answer", "type": "integer"}, {"name": "first name"}],
    }
    second = {"inputs": [{"name": "answer", "type": "integer"}], "outputs": [{"name": "text"}]}
    demo = {"question": "1?", "answer": 1, "first name": "Ann"}
    create(worker, "predict", "stage 1", first, [demo])
    create(worker, "predict", "stage 2", second, [])
    whole = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}, {"name": "first name"}]}
    stages = [{"name": "one", "program": "stage 1"}, {"name": "two", "program": "stage 2"}]
    args = {"id": "chain", "program_type": "pipeline", "signature": whole, "stages": stages}
    args |= {"outputs": {"answer": "two.text", "first name": "one.first name"}}
    worker.call("create_program", args)
    document = document_of(worker, "chain")
    assert document["one"]["demos"] == [{"question": "1?", "answer": 1, "first_name": "Ann"}]
    worker.call("import_program", {"document": document, "program_id": "chain again"})
    assert document_of(worker, "chain again") == document
    found = worker.call("get_program", {"program_id": "chain again", "include": ["demos"]})["predictors"]["one"]
    assert found["demos"] == [{"inputs": {"question": "1?"}, "outputs": {"answer": 1, "first name": "Ann"}}]
