"""Signatures of programs: types, optional inputs, wrong definitions and their paths."""

from __future__ import annotations

import json

import msgspec
import pytest

from bridge import Opaque
from bridge.wire.codec import ETF, MSGPACK
from dspy_requests import QA, script


def test_types_are_honoured_both_ways(ask, call):
    """Outputs have their declared types; inputs of another type are refused."""
    types = {
        "integer": 3,
        "float": 0.5,
        "boolean": True,
        "list<string>": ["a", "b"],
        "dict<string, integer>": {"a": 1},
        "union<integer|string>": 7,
        "confidence_score": 0.9,
        "reasoning_chain": ["x"],
        "List[int]": [1, 2],
        "embedding": [0.5],
        "atom": "ok",
    }
    names = {f"f{index}": name for index, name in enumerate(types)}
    signature = {
        "inputs": [{"name": name, "type": type} for name, type in names.items()],
        "outputs": [{"name": f"o{name}", "type": type} for name, type in names.items()],
    }
    values = {name: types[type] for name, type in names.items()}
    script(ask, {f"o{name}": value for name, value in values.items()})
    ask("create_program", id="typed", signature=signature)
    outputs = ask("execute_program", program_id="typed", inputs=values)["outputs"]
    assert outputs == {f"o{name}": value for name, value in values.items()}
    for wrong in ({"f0": "three"}, {"f2": []}, {"f3": "a"}, {"f4": {"a": "b"}}):
        reply = call("execute_program", program_id="typed", inputs={**values, **wrong})
        (name,) = wrong
        assert reply["code"] == "invalid_args"
        assert reply["details"]["path"].startswith(f"args.inputs.{name}")
        assert reply["details"]["expected"] == names[name]


def test_inputs_are_checked_before_any_model_is_called(ask, call):
    """Undeclared and missing inputs are named; DSPy's control arguments are not inputs."""
    script(ask)  # a model that fails when it is called
    ask("create_program", id="qa", signature=QA)
    evil = {"question": "?", "config": {"api_base": "http://evil"}, "lm": "x"}
    reply = call("execute_program", program_id="qa", inputs=evil)
    assert reply["code"] == "invalid_args"
    assert reply["details"]["unknown"] == ["config", "lm"]
    reply = call("execute_program", program_id="qa", inputs={})
    assert (reply["code"], reply["details"]["missing"]) == ("invalid_args", ["question"])
    assert "question" in reply["error"]
    reply = call("execute_program", program_id="qa", inputs={"question": "?"})
    assert reply["code"] == "lm_error"


def test_fields_may_have_names_that_dspy_uses(ask):
    """Names of control arguments and methods, with spaces, or shared by an input and an output."""
    names = [
        "config",
        "lm",
        "signature",
        "items",
        "first name",
        "é",
        "_x",
        "copy",
        "2nd",
        "reasoning",
    ]
    signature = {
        "inputs": {name: {"type": "string"} for name in names},
        "outputs": {name: {} for name in names},
    }
    ask("configure_lm", provider="offline")
    for program_type in ("predict", "chain_of_thought"):
        ask("create_program", id=program_type, signature=signature, program_type=program_type)
        inputs = {name: f"the {name}" for name in names}
        outputs = ask("execute_program", program_id=program_type, inputs=inputs)["outputs"]
        assert set(names) <= set(outputs)


def test_optional_inputs_may_be_missing(ask):
    """Inputs may be left out if their type allows it."""
    ask("configure_lm", provider="offline")
    signature = {
        "inputs": [{"name": "a"}, {"name": "b", "type": "optional<string>"}],
        "outputs": [{"name": "c"}],
    }
    ask("create_program", id="p", signature=signature)
    assert ask("execute_program", program_id="p", inputs={"a": "x"})["outputs"].keys() == {"c"}


def test_marks_of_images_in_text_stay_text(ask, dispatcher):
    """DSPy would turn them into content parts, which the provider fetches."""
    mark = '<<CUSTOM-TYPE-START-IDENTIFIER>>[{"type": "image_url"}]<<CUSTOM-TYPE-END-IDENTIFIER>>'
    ask("configure_lm", provider="scripted", answers={"image_url": {"answer": "text"}})
    ask("create_program", id="qa", signature=QA)
    result = ask("execute_program", program_id="qa", inputs={"question": mark})
    assert result["outputs"] == {"answer": "text"}


WITHOUT_TEXT_FORM = [
    # format, an input, its path, what is there
    (MSGPACK, msgspec.msgpack.Ext(5, b"x"), "args.inputs.q", "a MessagePack extension"),
    (MSGPACK, [1, {"x": b"\xff"}], "args.inputs.q[1].x", "binary data"),
    (MSGPACK, {"a b": [[float("nan")]]}, "args.inputs.q.a b[0][0]", "nan"),
    (MSGPACK, float("-inf"), "args.inputs.q", "-inf"),
    (ETF, [{"x": Opaque(b"\x58w\1n" + bytes(12))}], "args.inputs.q[0].x", "an Erlang term"),
    (ETF, {"x": [b"\xff"]}, "args.inputs.q.x[0]", "binary data"),
    (ETF, [10**4300], "args.inputs.q[0]", "an integer of more than 4300 digits"),
    (ETF, {-(10**4300): 1}, "args.inputs.q", "a map whose key is an integer of more than 4300"),
]


@pytest.mark.parametrize("type", ["any", "string", "list", "dict<string, any>", "integer"])
@pytest.mark.parametrize(("format", "value", "path", "kind"), WITHOUT_TEXT_FORM)
def test_inputs_without_a_text_form_are_refused(dispatcher, ask, type, format, value, path, kind):
    """The error has the path, whatever the field's type is; no prompt contains Python's repr of them."""
    script(ask)  # a model that fails when it is called
    signature = {"inputs": [{"name": "q", "type": type}], "outputs": [{"name": "a"}]}
    ask("create_program", id="p", signature=signature)
    run = {
        "id": 1,
        "command": "execute_program",
        "args": {"program_id": "p", "inputs": {"q": value}},
    }
    reply = format.decode(dispatcher.call(format.encode(run), 60))
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert reply["error"].startswith(f"{path}: {kind}")
    assert reply["error"].endswith("has no text form for a prompt")


WRONG_SIGNATURES = [
    ({}, "args.signature.inputs"),
    ({"inputs": [], "outputs": []}, "args.signature.outputs"),
    ({"inputs": 5, "outputs": []}, "args.signature.inputs"),
    ({"inputs": [{"type": "string"}], "outputs": [{"name": "a"}]}, "args.signature.inputs[0].name"),
    (
        {"inputs": [], "outputs": [{"name": "a", "type": "exec('x')"}]},
        "args.signature.outputs[0].type",
    ),
    (
        {"inputs": [], "outputs": [{"name": "a", "type": "os.system"}]},
        "args.signature.outputs[0].type",
    ),
    ({"inputs": [], "outputs": [{"name": "a"}, {"name": "a"}]}, "args.signature.outputs[1]"),
    ({"inputs": [], "outputs": [{"name": ""}]}, "args.signature.outputs[0]"),
    ("question: this -> answer", "args.signature"),
]


@pytest.mark.parametrize(("signature", "path"), WRONG_SIGNATURES)
def test_wrong_signatures_are_refused_with_their_path(call, signature, path):
    """DSPy's string form, which would import modules, is refused too."""
    reply = call("create_program", id="p", signature=signature)
    assert (reply["success"], reply["code"]) == (False, "invalid_args")
    assert reply["details"]["path"] == path


def test_unknown_program_types_are_refused(call):
    """An unknown type is an error instead of being ignored."""
    reply = call("create_program", id="p", signature=QA, program_type="telepathy")
    assert reply["code"] == "invalid_args"
    assert "predict" in reply["error"]


def test_messages_that_hosts_look_for(ask, call):
    """Hosts search for these texts of errors."""
    ask("create_program", id="qa", signature=QA)
    assert call("create_program", id="qa", signature=QA)["error"] == ("Program with ID 'qa' already exists")
    for command in ("execute_program", "delete_program", "get_program_info"):
        assert call(command, program_id="X")["error"] == "Program not found: X"
        assert "Program ID is required" in call(command)["error"]
    assert call("nope")["error"] == "Unknown command: nope"


def test_the_signature_comes_back_exactly(dispatcher, ask):
    """Names, the order of keys, the spelling of numbers, and strings that are not UTF-8 are unchanged."""
    signature = (
        b'{"outputs":[{"name":"a","type":"number","constraints":{"maximum":1.50}}],"inputs":[{"name":"q"}] , '
        b'"metadata":{"z":1e2,"\\u00e9":null}}'
    )
    reply = dispatcher.call(
        b'{"id": 1, "command": "create_program", "args": {"id": "p", "signature": ' + signature + b"}}"
    )
    assert signature in reply
    packed = (
        b"\x83\xa6inputs\x91\x81\xa4name\xa1q\xa7outputs\x91\x82\xa4name\xa1a"
        b"\xabdescription\xa2\xff\xfe\xa8metadata\xa3\x80\x81\x82"
    )
    request = b"\x83\xa2id\x01\xa7command\xaecreate_program\xa4args\x82\xa2id\xa1b\xa9signature" + packed
    reply = dispatcher.call(request)
    assert b"created" in reply
    assert packed in reply
    listing = dispatcher.call(msgspec.msgpack.encode({"id": 2, "command": "list_programs"}))
    assert packed in listing
    listed = {entry["id"]: entry["signature"] for entry in ask("list_programs")["programs"]}
    assert listed["p"] == json.loads(signature)
    assert listed["b"]["inputs"] == [{"name": "q"}]


def test_signatures_come_back_in_etf(ask, dispatcher):
    """They are terms with their atoms; in listings in another format they are text."""

    def call(command, args):
        return dispatcher.call(ETF.encode({"id": 1, "command": command, "args": args}), 60)

    signature = ETF.encode({"inputs": [{"name": "q"}], "outputs": [{"name": "a"}], "metadata": b"\xff"})
    signature = signature.replace(b"m\0\0\0\x08metadata", b"w\x08metadata")[1:]
    create = {"id": "p", "signature": msgspec.Raw(signature)}
    assert signature in call("create_program", create)
    assert signature in call("list_programs", {})
    listed = ask("list_programs")["programs"][0]["signature"]
    assert listed == {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}], "metadata": "\ufffd"}
    call("configure_lm", {"provider": "offline"})
    run = {"program_id": "p", "inputs": {"q": b"\xff"}, "program_data": create}
    reply = ETF.decode(call("execute_program", run))
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.inputs.q")
    run = {"program_id": "far", "inputs": {"q": "?"}, "program_data": create}
    assert "outputs" in ETF.decode(call("execute_program", run))["result"]
    data = {"signature": {}, "signature_def": {"inputs": {"q": {}}, "outputs": {"a": {}}}}
    run = {"program_id": "farther", "inputs": {"q": "?"}, "program_data": data}
    assert "outputs" in ETF.decode(call("execute_program", run))["result"]


def test_inputs_that_are_not_utf8_are_refused_by_name(dispatcher):
    """The error names the field, and the rest of the frame is read."""

    def call(command, args):
        reply = dispatcher.call(msgspec.msgpack.encode({"id": 1, "command": command, "args": args}), 60)
        return msgspec.msgpack.decode(reply)

    call("configure_lm", {"provider": "offline"})
    call("create_program", {"id": "qa", "signature": QA})
    request = msgspec.msgpack.encode(
        {
            "id": 1,
            "command": "execute_program",
            "args": {"program_id": "qa", "inputs": {"question": "\u00ff\u00ff"}},
        }
    )
    broken = request.replace("\u00ff\u00ff".encode(), b"\xff\xfe\xff\xfe")
    reply = msgspec.msgpack.decode(dispatcher.call(broken, 60))
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.inputs.question")


def test_program_data_rebuilds_a_program_anywhere(ask):
    """Hosts that store programs send them with each execute."""
    script(ask, {"answer": "1"}, {"answer": "2"}, {"answer": "3"})
    data = {"program_id": "far", "signature_def": {}, "signature": QA}
    for count in (1, 2):
        result = ask(
            "execute_program",
            program_id="far",
            inputs={"question": "?"},
            program_data=data,
            session_id="s",
        )
        assert result["outputs"] == {"answer": str(count)}
    assert ask("get_program_info", program_id="far", session_id="s")["execution_count"] == 2
    other = {**data, "signature": {**QA, "outputs": [{"name": "reply"}, {"name": "answer"}]}}
    del other["signature"]["outputs"][0]
    assert ask(
        "execute_program",
        program_id="far",
        inputs={"question": "?"},
        program_data=other,
        session_id="s",
    )["outputs"] == {"answer": "3"}


def test_sessions_have_their_own_programs_and_models(ask, call):
    """A model that was set without a session is the fallback."""
    script(ask, {"answer": "common"}, {"answer": "common"})
    script(ask, {"answer": "a's"}, session_id="a")
    for session in ("a", "b"):
        ask("create_program", id="qa", signature=QA, session_id=session)
    run = {"program_id": "qa", "inputs": {"question": "?"}}
    assert ask("execute_program", session_id="a", **run)["outputs"] == {"answer": "a's"}
    assert ask("execute_program", session_id="b", **run)["outputs"] == {"answer": "common"}
    assert call("execute_program", **run)["code"] == "program_not_found"
    assert ask("cleanup_session", session_id="a") == {
        "status": "cleaned",
        "session_id": "a",
        "programs_removed": 1,
    }
    assert call("execute_program", session_id="a", **run)["code"] == "program_not_found"
    assert ask("execute_program", session_id="b", **run)["outputs"] == {"answer": "common"}


def test_every_attribute_of_dspys_classes_can_name_a_field(ask):
    """On either side and for every program type, whatever DSPy uses the name for."""
    import dspy

    names = {name for cls in (dspy.Predict, dspy.Signature, dspy.Prediction, dspy.Example) for name in dir(cls)} | {
        "config",
        "lm",
        "completions",
        "max_iters",
        "demos",
        "n",
    }
    names = sorted(names)[:240]
    ask("configure_lm", provider="offline")
    ask("register_tools", tools=[{"name": "look"}])
    for program_type in ("predict", "chain_of_thought", "react"):
        fields = [{"name": name} for name in names]
        ask(
            "create_program",
            id=program_type,
            program_type=program_type,
            signature={"inputs": fields, "outputs": fields},
        )
        inputs = dict.fromkeys(names, "x")
        outputs = ask("execute_program", program_id=program_type, inputs=inputs)["outputs"]
        assert set(names) <= set(outputs)


def test_json_listings_stay_readable(dispatcher, ask):
    """A signature that is not UTF-8 comes back exactly, and a JSON listing with it can be read."""
    broken = b'{"inputs": [{"name": "q", "description": "\xff"}], "outputs": [{"name": "a"}]}'
    reply = dispatcher.call(
        b'{"id": 1, "command": "create_program", "args": {"id": "b", "signature": ' + broken + b"}}"
    )
    assert broken in reply
    (listed,) = ask("list_programs")["programs"]
    assert listed["signature"]["inputs"][0]["description"] == "\ufffd"
