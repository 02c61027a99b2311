"""Programs that the operator registers with `--program`: the commands on programs, inputs, outputs, errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bridge import Client, Dispatcher, Options, embed, errors
from bridge.adapter import AdapterFailed
from bridge.adapters.dspy import adapter
from bridge.adapters.echo import adapter as echo

SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
PROGRAMS = {
    **{"stages": "Stages", "returns": "Returns", "fails": "Fails", "declares": "Declares", "open": "Open"},
    **{"predictor": "predictor", "wrapped": "wrapped", "annotates": "Annotates", "static": "WithoutSelf"},
}
FLAGS = [part for name, attribute in PROGRAMS.items() for part in ("--program", f"{name}=own_modules:{attribute}")]


def environment(*folders: str) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])}


@pytest.fixture(scope="module")
def client(support):
    with Client.start(flags=FLAGS, env=environment(support)) as client:
        yield client


def run(client, program_id, inputs, answers=(), session="s", **args):
    """Return the outputs of a program whose model gives these answers."""
    client.call("configure_lm", {"provider": "scripted", "answers": list(answers)}, session_id=session)
    args = {"program_id": program_id, "inputs": inputs, **args}
    return client.call("execute_program", args, session_id=session)["outputs"]


def refused(client, error, command, **args):
    with pytest.raises(error) as raised:
        client.call(command, args, session_id="s")
    return raised.value


def test_registered_programs_are_listed_and_described(client):
    """In every session, beside its own; their runs are counted over all sessions."""
    for session in (None, "other"):
        listed = client.call("list_programs", session_id=session)
        assert listed["registered"] == list(PROGRAMS)
        assert (listed["programs"], listed["total_count"]) == ([], 0)
    before = client.call("get_program_info", {"program_id": "stages"})
    assert before.items() >= {"program_type": "module", "registered": True, "execution_count": 0}.items()
    assert "inherited" not in before
    assert before["signature"] == {
        "name": "Stages",
        "description": "Two stages whose output has the same name.",
        "inputs": [
            {"name": "question", "type": "str", "description": ""},
            {"name": "repeat", "type": "int", "description": ""},
        ],
        "outputs": [],
    }
    run(client, "stages", {"question": "?"}, [{"answer": "a"}, {"reasoning": "r", "answer": "b"}], "first")
    after = client.call("get_program_info", {"program_id": "stages"}, session_id="second")
    assert after["execution_count"] == 1
    assert after["last_executed"]


def test_the_signature_of_a_module_is_described(client):
    """With its instructions, and with the fields' types and descriptions."""
    signature = client.call("get_program_info", {"program_id": "declares"})["signature"]
    assert (signature["name"], signature["description"]) == ("Typed", "Find the place.")
    assert signature["inputs"][0] == {"name": "question", "type": "str", "description": "what is asked"}
    assert [field["name"] for field in signature["outputs"]] == ["place", "others", "color"]


def test_registered_programs_cannot_be_deleted_or_replaced(client):
    """Nor can a session have a program of that name, whether created or sent with a run."""
    error = refused(client, errors.NotAllowed, "delete_program", program_id="stages")
    assert error.details == {"program_id": "stages", "registered": True}
    for choice in ("error", "keep", "replace"):
        args = {"id": "stages", "signature": SIGNATURE, "if_exists": choice}
        error = refused(client, errors.ProgramExists, "create_program", **args)
        assert error.details == {"program_id": "stages", "registered": True}
    data = {"signature": SIGNATURE}
    refused(client, errors.ProgramExists, "execute_program", program_id="stages", inputs={}, program_data=data)


def test_cleaning_up_leaves_registered_programs(support):
    """They do not count for the quota of a session."""
    flags = [*FLAGS, "--session-programs", "1"]
    with Client.start(flags=flags, env=environment(support)) as client:
        client.call("create_program", {"id": "own", "signature": SIGNATURE})
        assert client.call("cleanup")["programs_removed"] == 1
        client.call("reset_state")
        client.call("cleanup_session", session_id="s")
        assert run(client, "open", {"x": 1}) == {"names": ["x"]}
        assert client.call("list_programs")["registered"] == list(PROGRAMS)


def test_a_restored_program_comes_before_a_registered_one(support, tmp_path):
    """A durable session keeps its programs, also those whose names the operator registers later."""
    store = ["--store", f"sqlite:{tmp_path}/sessions.db"]
    with Client.start(flags=store) as client:
        client.call("create_session", {"durable": True}, session_id="ann")
        client.call("create_program", {"id": "open", "signature": SIGNATURE}, session_id="ann")
    with Client.start(flags=[*store, *FLAGS], env=environment(support)) as client:
        client.call("configure_lm", {"provider": "scripted", "answers": [{"answer": "own"}]}, session_id="ann")
        args = {"program_id": "open", "inputs": {"question": "?"}}
        assert client.call("execute_program", args, session_id="ann")["outputs"] == {"answer": "own"}
        kept = {"id": "open", "signature": SIGNATURE, "if_exists": "keep"}
        assert client.call("create_program", kept, session_id="ann")["status"] == "exists"
        client.call("delete_program", {"program_id": "open"}, session_id="ann")
        assert client.call("execute_program", args, session_id="ann")["outputs"] == {"names": ["question"]}


def test_a_model_of_the_session_is_needed(client):
    """The model that the operator's file configures is not used."""
    args = {"program_id": "stages", "inputs": {"question": "?"}}
    with pytest.raises(errors.LMNotConfigured):
        client.call("execute_program", args, session_id="without a model")


WRONG_INPUTS = [
    ("stages", {}, "inputs missing: question"),
    ("stages", {"question": "?", "extra": 1}, "inputs not declared by stages: extra; declared: question, repeat"),
    ("stages", {"question": "?", "repeat": "often"}, "args.inputs.repeat: expected int: "),
    ("stages", {"question": float("nan")}, "args.inputs.question: nan has no text form"),
    ("declares", {"question": "?"}, "inputs missing: day"),
    ("declares", {"question": "?", "day": 5}, "args.inputs.day: expected date: "),
    ("declares", {"question": "?", "day": "2024-02-29", "near": {}}, "args.inputs.near"),
    ("declares", {"question": "?", "day": "2024-02-29", "city": "x"}, "inputs not declared by declares: city"),
    ("predictor", {}, "inputs missing: question"),
    ("wrapped", {"questions": "?"}, "inputs not declared by wrapped: questions; declared: question"),
    ("annotates", {"count": 0}, "args.inputs.count: expected int: Input should be greater than or equal to 1"),
    ("annotates", {"count": 1, "words": [[]]}, "args.inputs.words[0]: expected "),
    ("annotates", {"count": 1, "shape": {"name": "x"}}, "args.inputs.shape: expected Union[Shape, NoneType]: KeyError"),
    ("annotates", {"count": 1, "lm": "x"}, "inputs not declared by annotates: lm; declared: count, amount, words, sha"),
    ("open", {"x": b"abc"}, "args.inputs.x: binary data has no text form"),
]


@pytest.mark.parametrize(("program_id", "inputs", "message"), WRONG_INPUTS)
def test_wrong_inputs_are_refused_before_the_module_runs(client, program_id, inputs, message):
    """A module declares its inputs by a signature, or else by the parameters of its forward."""
    error = refused(client, errors.InvalidArgs, "execute_program", program_id=program_id, inputs=inputs)
    assert str(error).startswith(message)
    assert error.details["path"].startswith("args.inputs.")


@pytest.mark.parametrize(
    "name", ["config", "demos", "lm", "new_signature", "signature", "prediction", "_trace", "self"]
)
@pytest.mark.parametrize("program_id", ["open", "predictor", "wrapped", "declares"])
def test_inputs_do_not_control_dspy(client, program_id, name):
    """DSPy would take these arguments for settings, for instance for the address that gets the session's key."""
    value = {"api_base": "http://localhost:1"}
    error = refused(client, errors.InvalidArgs, "execute_program", program_id=program_id, inputs={name: value})
    assert error.details["unknown"] == [name]


def test_inputs_arrive_in_the_types_that_are_declared(client):
    """Of a signature, as models and dates; inputs that may be missing are left out."""
    answer = {"place": {"name": "Rome"}, "others": [{"name": "Bonn", "country": "de"}], "color": "red"}
    for near in ({}, {"near": {"name": "x"}}, {"near": None}):
        outputs = run(client, "declares", {"question": "?", "day": "2024-02-29", **near}, [answer])
        assert outputs == {
            "place": {"name": "Rome", "country": "unknown"},
            "others": [{"name": "Bonn", "country": "de"}],
            "color": "red",
        }


def test_annotations_are_read_one_by_one(client):
    """One that only a type checker can read is any value; null is allowed where it is the default."""
    declared = client.call("get_program_info", {"program_id": "annotates"})["signature"]["inputs"]
    types = {field["name"]: field["type"] for field in declared}
    assert types.pop("shape") == "Union[Shape, NoneType]"
    assert types == {"count": "int", "amount": "any", "words": "Union[list[str], NoneType]"}
    outputs = run(client, "annotates", {"count": "2", "amount": 5, "words": None, "shape": {"name": "square"}})
    assert outputs == {"count": 2, "amount": "int", "words": None, "shape": {"name": "square", "corners": 4}}


def test_a_forward_may_be_a_static_method(client):
    assert run(client, "static", {"count": "2"}) == {"count": 2}


def test_an_output_that_does_not_fit_its_type_is_an_lm_error(client):
    """Also if the type is one that a host cannot declare."""
    answer = {"place": {"country": "x"}, "others": [], "color": "red"}
    with pytest.raises(errors.LMError, match="the field place of the model's reply is not of its type") as raised:
        run(client, "declares", {"question": "?", "day": "2024-02-29"}, [answer])
    assert raised.value.details["field"] == "place"


PLAIN = {
    "model": {"name": "Paris", "country": "unknown"},
    "models": [{"name": "Paris", "country": "unknown"}, {"at": {"name": "Rome", "country": "unknown"}}],
    "shape": {"name": "square", "corners": 4, "color": "red"},
    "enum": {"red": "red"},
    "set": [1],
    "tuple": [1, [2]],
    "moment": "2024-02-29",
    "array": [[0.0, 1.0], [2.0, 3.0]],
    "number": 0.5,
    "prediction": {"inner": 1},
    "text": {"code": "x = 1", "why": "so"},
    "image": {"url": "http://localhost/a.png"},
}


@pytest.mark.parametrize("kind", PLAIN)
def test_results_become_plain_data(client, kind):
    assert run(client, "returns", {"kind": kind}) == {"value": PLAIN[kind]}


def test_a_module_may_return_an_object_with_fields(client):
    """A dataclass or a model of pydantic, beside a prediction and a map."""
    assert run(client, "returns", {"kind": "pair"}) == {"left": 1, "right": {"name": "Paris", "country": "unknown"}}


NOT_PLAIN = {
    "object": "outputs.value: a value of the type object is not plain data",
    "bytes": "outputs.value: a value of the type bytes is not plain data",
    "nan": "outputs.value: nan is not plain data",
    "large": "outputs.value: an integer of more than 64 bits is not plain data",
    "negative": "outputs.value: an integer of more than 64 bits is not plain data",
    "keys": "outputs.value: a map with two keys that are equal as text is not plain data",
    "deep": "outputs.value" + "[0]" * 29 + "…: nested too deeply",
    "key": "outputs.value: a map with a key of the type tuple is not plain data",
    "function": "outputs.value.f[0]: a value of the type builtin_function_or_method is not plain data",
    "nothing": "the module returned NoneType, not a dspy.Prediction or a map",
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_other_results_are_refused(client, kind):
    """The error contains the path."""
    with pytest.raises(errors.NotEncodable) as raised:
        run(client, "returns", {"kind": kind})
    assert str(raised.value) == NOT_PLAIN[kind]


def test_an_exception_of_a_module_is_a_handler_error(client):
    """With its type and text, also if it is one of DSPy's that is not about a model; ours keep their code."""
    with pytest.raises(errors.HandlerError) as raised:
        run(client, "fails", {"kind": "Bonn"})
    assert str(raised.value) == "LookupError: no passage about Bonn"
    with pytest.raises(errors.HandlerError, match="SystemExit: 3"):
        run(client, "fails", {"kind": "exit"})
    with pytest.raises(errors.HandlerError, match="CodeInterpreterError: line 1"):
        run(client, "fails", {"kind": "code"})
    with pytest.raises(errors.NotAllowed, match="closed on Sundays"):
        run(client, "fails", {"kind": "bridge"})


REFUSED = {
    "x": "'x' is not a program like NAME=MODULE:ATTRIBUTE",
    "=own_modules:Stages": "is not a program like NAME=MODULE:ATTRIBUTE",
    "x=own_modules": "is not a program like NAME=MODULE:ATTRIBUTE",
    "x=.own_modules:Stages": "is not a program like NAME=MODULE:ATTRIBUTE",
    "x\n=own_modules:Stages": "is not a program like NAME=MODULE:ATTRIBUTE",
    "x=no_such_module:Stages": "program 'x': there is no module 'no_such_module'",
    "x=own_modules:Nothing": "program 'x': 'own_modules' has no 'Nothing'",
    "x=own_modules:nothing": "program 'x': not a dspy.Module, its class, or a function that returns one: 'int'",
    "x=own_modules:Place": "program 'x' cannot be created: ",
    "x=own_modules:NeedsArgument": "program 'x' cannot be created: TypeError",
    "x=own_modules:failing": "program 'x' cannot be created: OSError: the corpus is missing",
    "x=own_modules:NoForward": "program 'x': NoForward has no method `forward`",
    "x=own_modules:AsyncForward": "program 'x': the forward of AsyncForward is async, which nothing awaits",
    "x=own_modules:PositionalOnly": "ValueError: the parameter 'q' of forward is positional-only, but inputs have na",
    "x=own_modules:TakesUnreadable": "its inputs cannot be read: ValueError: input 'q': no schema",
    "x=own_modules:Privileged": "program 'x': its inputs cannot be read: ValueError: 'lm' is an argument of DSPy's",
}


@pytest.mark.parametrize("given", REFUSED)
def test_a_program_that_cannot_be_used_is_an_error_at_the_start(given):
    with pytest.raises(AdapterFailed) as raised:
        Dispatcher(adapter, Options(programs=(given,)))
    assert REFUSED[given] in str(raised.value)


def test_an_embedded_worker_has_them_too(support):
    """As an option, a list; what cannot be loaded is a ValueError."""
    options = {"path": [support], "programs": ["open=own_modules:Open", "stages=own_modules:Stages"]}
    handle = embed.open(json.dumps(options).encode(), owns_interpreter=False)
    handle.close()
    options["programs"].append("x=own_modules:Nothing")
    with pytest.raises(ValueError, match="program 'x': 'own_modules' has no 'Nothing'"):
        embed.open(json.dumps(options).encode(), owns_interpreter=False)


def test_two_programs_of_one_name_are_an_error():
    with pytest.raises(AdapterFailed, match="program 'x': registered twice"):
        Dispatcher(adapter, Options(programs=("x=own_modules:Stages", "x=own_modules:Many")))


def test_other_adapters_run_no_programs():
    with pytest.raises(AdapterFailed, match="the adapter 'echo' runs no programs"):
        Dispatcher(echo, Options(programs=("x=own_modules:Stages",)))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--program", "x"], "argument --program: 'x' is not a program like NAME=MODULE:ATTRIBUTE"),
        (["--program", "x=no_such_module:X"], "error: program 'x': there is no module 'no_such_module'"),
        (["--program", "x=os:path", "--adapter", "echo"], "the adapter 'echo' runs no programs of the operator"),
    ],
)
def test_the_worker_exits_with_2_and_the_reason(flags, reason):
    """In the last line on stderr."""
    command = [sys.executable, "-m", "bridge", "worker", *flags]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 2
    assert reason in done.stderr.splitlines()[-1]
