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
FOREIGN = [(MSGPACK, msgspec.msgpack.Ext(5, b"x")), (MSGPACK, {None: 1}), (ETF, PID), (ETF, {(1, 2): 3})]


@pytest.fixture
def call():
    with Dispatcher(adapter) as dispatcher:

        def call(format, command, **args):
            return format.decode(dispatcher.call(format.encode({"id": 1, "command": command, "args": args}), 60))

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
