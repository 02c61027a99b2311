"""Values that a format can carry and a stored program or a script of answers cannot."""

from __future__ import annotations

import msgspec
import pytest

from bridge import Dispatcher
from bridge.adapters.dspy import adapter
from bridge.wire._etf import Opaque
from bridge.wire.codec import ETF, JSON, MSGPACK

ANY = {"inputs": [{"name": "q", "type": "any"}], "outputs": [{"name": "a", "type": "any"}]}
PID = Opaque(b"X" + b"w\x01n" + bytes(12))
LARGE = 2**70
HUGE = 10**5000
FOREIGN = [(MSGPACK, msgspec.msgpack.Ext(5, b"x")), (MSGPACK, {None: 1}), (ETF, PID), (ETF, {(1, 2): 3})]


@pytest.fixture
def call():
    with Dispatcher(adapter) as dispatcher:

        def call(format, command, args=None, **more):
            request = {"id": 1, "command": command, "args": {**(args or {}), **more}}
            return format.decode(dispatcher.call(format.encode(request), 60))

        yield call


def refused(reply, path):
    assert not reply["success"], reply
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path), reply


def stage(**more):
    return {"name": "s", "signature": {**ANY, **more}}


@pytest.mark.parametrize("program_type", ["predict", "knn"])
@pytest.mark.parametrize("format", [JSON, ETF], ids=lambda format: format.name)
def test_large_integers_in_demos(call, format, program_type):
    demos = [{"inputs": {"q": LARGE}, "outputs": {"a": 1}}]
    refused(call(format, "create_program", signature=ANY, program_type=program_type, demos=demos), "args")


@pytest.mark.parametrize("format", [JSON, ETF], ids=lambda format: format.name)
def test_large_integers_in_stages_and_documents(call, format):
    made = call(format, "create_program", signature=ANY, program_type="pipeline", stages=[stage(metadata=LARGE)])
    refused(made, "args")
    call(format, "create_program", id="p", signature=ANY)
    document = call(format, "export_program", program_id="p")["result"]["document"]
    document["demos"] = [{"q": 1, "a": LARGE}]
    refused(call(format, "import_program", document=document), "args")


@pytest.mark.parametrize(("format", "value"), FOREIGN)
def test_values_of_one_format(call, format, value):
    """In signatures inside of other values, which are stored as JSON."""
    pipeline = {"signature": ANY, "program_type": "pipeline"}
    refused(call(format, "create_program", **pipeline, stages=[stage(metadata=value)]), "args.stages[0].signature")
    document = {
        "metadata": {"bridge": {"version": 1, "program_type": "predict", "signature": {**ANY, "metadata": value}}}
    }
    refused(call(format, "import_program", document=document), "args.document.metadata.bridge.signature")
    options = {"stages": [{**stage(metadata=value), "program_type": "predict", "inputs": {}, "tools": []}]}
    document = {"metadata": {"bridge": {"version": 1, **pipeline, "options": options}}}
    reply = call(format, "import_program", document=document)
    assert reply["code"] == "invalid_args", reply
    reply = call(format, "configure_lm", provider="scripted", answers=[{"a": value}])
    assert reply["code"] == "invalid_args", reply
    assert reply["details"]["path"].startswith("args.answers")


@pytest.mark.parametrize("key", [HUGE, (HUGE,)], ids=["integer", "tuple"])
def test_names_that_are_integers_without_a_text(call, key):
    """Python converts integers of up to 4300 digits to text."""
    call(JSON, "configure_lm", provider="offline")
    call(JSON, "create_program", id="p", signature=ANY)
    entry = {key: PID}
    for command, args, path in (
        ("describe", entry, "args."),
        ("create_session", {"session_id": "s", "quota": entry}, "args.quota."),
        ("create_program", {"signature": entry}, "args.signature."),
        ("evaluate", {"program_id": "p", "devset": [entry], "metric": "f1"}, "args.devset[0]."),
        ("update_session_data", {"key": "k", "value": entry}, "args.value."),
    ):
        reply = call(ETF, command, args)
        assert reply["code"] == "invalid_args", reply
        assert reply["details"]["path"].startswith(path)
    batch = call(ETF, "execute_batch", program_id="p", inputs=[entry])
    assert batch["result"]["results"][0]["error"]["code"] == "invalid_args"


def test_integers_without_a_text(call):
    refused(call(ETF, "inspect_call", id=HUGE), "args.id")
    document = {"metadata": {"bridge": {"version": HUGE, "program_type": "predict", "signature": ANY}}}
    refused(call(ETF, "import_program", document=document), "args.document.metadata.bridge.version")
    document["metadata"]["bridge"] = {"version": 1, "program_type": "predict", "signature": {**ANY, "metadata": HUGE}}
    refused(call(ETF, "import_program", document=document), "args.document.metadata.bridge.signature")
    stages = [stage(metadata=HUGE)]
    made = call(ETF, "create_program", signature=ANY, program_type="pipeline", stages=stages)
    refused(made, "args.stages[0].signature")
