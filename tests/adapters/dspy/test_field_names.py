"""Fields may have any name, in inputs, outputs, chunks, errors and prompts."""

from __future__ import annotations

import itertools
import json

import dspy
import pydantic
import pytest

from bridge import Dispatcher
from bridge._framing import Frame, Outbox
from bridge.adapters.dspy import adapter
from bridge.adapters.dspy.engines.scripted import ScriptedAnswers
from bridge.adapters.dspy.engines.text import TextEngine
from bridge.adapters.dspy.signatures import _STEM, _python_name

NAMES = [
    # parameters of DSPy's modules and of what wraps them
    *("instance", "self", "config", "lm", "demos", "signature", "new_signature", "prediction"),
    *("args", "kwargs", "module", "max_iters", "tools", "callbacks", "base", "completions", "n"),
    # attributes of pydantic's and DSPy's classes
    *("model_config", "model_fields", "fields", "copy", "json", "dict", "schema", "items", "keys"),
    *("values", "get", "instructions", "input_fields", "validate", "construct", "dspy_uuid"),
    # words of Python
    *("class", "def", "None", "True", "import", "lambda", "print", "__init__", "__class__", "_x"),
    *("__", "type", "id", "mro"),
    # sections of DSPy's own
    *("reasoning", "trajectory", "next_thought", "next_tool_name", "next_tool_args", "completed"),
    *("thought_0", "tool_name_0", "tool_args_0", "observation_0", "finish", "history"),
    # no words
    *("first name", "first_name", "first-name", "a.b", "2nd", "?", "größe", "名前", "\U0001f600"),
    *("a/b", "[[ ## x ## ]]", "line\nbreak", "x" * 300, "q`", "Question", "question"),
]
TYPES = ("predict", "chain_of_thought", "react")


@pytest.fixture
def prompts(monkeypatch):
    """Return the list of (system, last message) of all requests to a scripted model."""
    seen = []
    complete = TextEngine.complete

    def recorded(self, request):
        system = request.system if isinstance(request.system, str) else _text(request.system)
        seen.append((system, _text(request.messages[-1].parts)))
        return complete(self, request)

    monkeypatch.setattr(TextEngine, "complete", recorded)
    return seen


def _text(parts):
    return "".join(part.text for part in parts)


@pytest.fixture
def ask():
    """Return a function ask(command, **args): the result, or the reply of one that `fails`; `events` gets those of a
    streamed call."""
    dispatcher = Dispatcher(adapter)
    ids = itertools.count(1)

    def ask(command, events=None, fails=False, **args):
        request = {"id": next(ids), "command": command, "args": args, "stream": events is not None}
        payload = json.dumps(request).encode()
        reply = json.loads(dispatcher.call(payload, 60)) if events is None else _streamed(dispatcher, payload, events)
        assert reply["success"] is not fails, reply
        return reply if fails else reply["result"]

    return ask


def _streamed(dispatcher, payload, events):
    import queue

    arrived = queue.SimpleQueue()
    dispatcher.path.answer(Frame.of(payload), Outbox(), arrived.put)
    while True:
        message = json.loads(arrived.get(timeout=60).payload())
        if "success" in message:
            return message
        events.append((message["event"], message["data"]))


def run(ask, program_type, inputs, outputs, events=None):
    """Return the outputs of a program with these fields, whose model answers `outputs`."""
    signature = {"inputs": [{"name": n} for n in inputs], "outputs": [{"name": n} for n in outputs]}
    ask("register_tools", tools=[{"name": "look"}])
    ask("create_program", id="p", signature=signature, program_type=program_type)
    step = {"next_thought": "so", "next_tool_name": "finish", "next_tool_args": {}}
    answer = outputs if program_type == "predict" else {"reasoning": "so", **outputs}
    ask("configure_lm", provider="scripted", answers=[step, answer][program_type != "react" :])
    result = ask("execute_program", events=events, program_id="p", inputs=inputs)
    ask("delete_program", program_id="p")
    return result["outputs"]


@pytest.mark.parametrize("program_type", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_any_name(ask, prompts, name, program_type):
    """An input and an output may have any name: values, chunks and prompts use it."""
    outputs = {"answer": "fine"}
    if not (name == "reasoning" and program_type != "predict"):
        outputs[name] = "the output"
    inputs = {name: "the input", "other": "more"}
    events = []
    found = run(ask, program_type, inputs, outputs, events)
    assert {key: found[key] for key in outputs} == outputs
    chunks = {}
    for event, data in events:
        if event == "chunk":
            chunks[data["field"]] = chunks.get(data["field"], "") + data["text"]
    assert {key: chunks[key] for key in outputs} == outputs
    for system, message in prompts:
        assert " ".join(name.split()) in " ".join(system.split())
        assert "the input" in message
        assert _STEM not in system + message


@pytest.mark.parametrize("program_type", TYPES)
def test_all_names_at_once(ask, prompts, program_type):
    """In a signature with all names as inputs and as outputs, no field gets another's value."""
    inputs = {name: f"in {index}" for index, name in enumerate(NAMES)}
    outputs = {name: f"out {index}" for index, name in enumerate(NAMES)}
    if program_type != "predict":
        del outputs["reasoning"]
    found = run(ask, program_type, inputs, outputs)
    assert {key: value for key, value in found.items() if key in outputs} == outputs
    for index in range(len(NAMES)):
        assert f"\nin {index}\n" in prompts[-1][1]


@pytest.mark.parametrize("name", ["config", "first name", "reasoning", "a.b"])
def test_errors_name_fields_as_the_host_does(ask, name):
    """Errors for missing and wrong inputs and outputs use the host's names."""
    signature = {"inputs": [{"name": name, "type": "integer"}], "outputs": [{"name": name}]}
    signature["outputs"].append({"name": "n", "type": "integer"})
    ask("create_program", id="p", signature=signature)
    run = {"program_id": "p", "inputs": {name: 1}}
    ask("configure_lm", provider="scripted", answers=[{"n": 1}, {name: "x", "n": "y"}])
    missing = ask("execute_program", fails=True, **run)
    assert missing["details"]["expected"] == [name, "n"]
    assert missing["details"]["found"] == ["n"]
    assert ask("execute_program", fails=True, **run)["details"]["found"] == [name, "n"]
    wrong = ask("execute_program", fails=True, program_id="p", inputs={name: "x"})
    assert wrong["details"]["path"] == f"args.inputs.{name}"
    wrong = ask("execute_program", fails=True, program_id="p", inputs={})
    assert wrong["details"]["missing"] == [name]


def test_names_with_equal_labels_stay_different_fields(ask):
    """Names whose difference a prompt cannot show get different labels, in either order."""
    for names in (["a b", "a_b", "a-b"], ["a_b", "a b", "a.b"]):
        values = {name: str(index) for index, name in enumerate(names)}
        assert run(ask, "predict", values, values) == values


@pytest.mark.parametrize("name", ["question", "config", "instance", "model_config", "_x", "größe"])
def test_names_that_are_words_appear_in_the_prompt(ask, prompts, name):
    """They are the headers of sections, and appear in the list of fields."""
    run(ask, "predict", {name: "?"}, {"answer": "fine"})
    system, message = prompts[0]
    assert f"1. `{name}` (str):\n" in system
    assert f"[[ ## {name} ## ]]\n{{{name}}}" in system
    assert message.startswith(f"[[ ## {name} ## ]]\n?\n")


def test_other_names_precede_the_description_in_the_prompt(ask, prompts):
    """The prompt shows such a name beside the label that the model has to use."""
    run(ask, "predict", {"first name": "?"}, {"first name": "fine"})
    system, _ = prompts[0]
    assert "1. `first_name` (str): first name\n" in system
    assert "1. `field_first_name` (str): first name\n" in system


@pytest.mark.parametrize("program_type", TYPES)
def test_prompts_of_ordinary_names_are_those_of_dspy(ask, prompts, program_type):
    """They equal DSPy's prompts for each program type, with a description and without."""
    fields = {
        "question": (str, dspy.InputField(desc="what is asked")),
        "passages": (list[str], dspy.InputField(desc="")),
        "answer": (str, dspy.OutputField(desc="")),
        "score": (float, dspy.OutputField(desc="0 to 1")),
    }
    definition = {
        "inputs": [
            {"name": "question", "description": "what is asked"},
            {"name": "passages", "type": "list<string>"},
        ],
        "outputs": [
            {"name": "answer"},
            {"name": "score", "type": "float", "description": "0 to 1"},
        ],
    }
    inputs = {"question": "Where?", "passages": ["Here.", "There."]}
    step = {"next_thought": "so", "next_tool_name": "finish", "next_tool_args": {}}
    answer = {"reasoning": "so", "answer": "here", "score": 1}
    answers = [step, answer] if program_type == "react" else [answer]
    modules = {"predict": dspy.Predict, "chain_of_thought": dspy.ChainOfThought}
    ask("register_tools", tools=[{"name": "look", "description": "Looks.", "args": {"at": {}}}])
    for description in ("Answer `question`.", None):
        ask("configure_lm", provider="scripted", answers=answers)
        signature = definition if description is None else {**definition, "description": description}
        ask("create_program", id="p", signature=signature, program_type=program_type)
        ask("execute_program", program_id="p", inputs=inputs)
        ask("delete_program", program_id="p")
        ours, prompts[:] = prompts[:], []
        default = "Given the fields `question`, `passages`, produce the fields `answer`, `score`."
        own = dspy.make_signature(fields, description or default)
        if program_type == "react":
            tool = dspy.Tool(lambda **args: "", name="look", desc="Looks.", args={"at": {}}, arg_types={})
            module = dspy.ReAct(own, [tool])
        else:
            module = modules[program_type](own)
        lm = dspy.LM("scripted/answers", engine=TextEngine(ScriptedAnswers(answers)), cache=False)
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter(), disable_history=True):
            module(**inputs)
        theirs, prompts[:] = prompts[:], []
        assert ours == theirs


def test_python_names():
    """A field's name in DSPy is its label, unless a class of DSPy has an attribute of that name."""
    assert [_python_name(label, 0) for label in ("question", "Answer_2", "n")] == ["question", "Answer_2", "n"]
    classes = (dspy.Signature, type(dspy.Signature), dspy.Example, dspy.Prediction, pydantic.BaseModel)
    for name in {name for each in classes for name in dir(each)}:
        assert _python_name(name, 7) == f"{_STEM}7", name
