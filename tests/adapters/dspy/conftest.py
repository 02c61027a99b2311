"""Fixtures of the tests of the DSPy adapter."""

from __future__ import annotations

import itertools
import json

import pytest

from bridge import Dispatcher
from bridge.adapters.dspy import adapter
from dspy_worker import DspyWorker


@pytest.fixture
def dispatcher():
    return Dispatcher(adapter)


@pytest.fixture
def call(dispatcher):
    """Return a function call(command, **args) that returns the whole reply."""
    ids = itertools.count(1)

    def call(command, **args):
        request = {"id": next(ids), "command": command, "args": args}
        return json.loads(dispatcher.call(json.dumps(request).encode(), 60))

    return call


@pytest.fixture
def ask(call):
    """Return a function ask(command, **args) that returns the result."""

    def ask(command, **args):
        reply = call(command, **args)
        assert reply["success"], reply
        return reply["result"]

    return ask


@pytest.fixture(scope="module")
def run():
    """Return a function run(type, text) that runs a program whose model writes `text` for the output."""
    dispatcher = Dispatcher(adapter)
    ids = itertools.count(1)

    def call(command, **args):
        request = {"id": next(ids), "command": command, "args": args}
        return json.loads(dispatcher.call(json.dumps(request).encode(), 60))

    def run(type, text, field="out", **definition):
        program_id = f"p{next(ids)}"
        signature = {"inputs": [{"name": "q"}], "outputs": [{"name": field, "type": type}]}
        created = call("create_program", id=program_id, signature={**signature, **definition}, session_id="s")
        assert created["success"], created
        answer = f"[[ ## {field} ## ]]\n{text}\n\n[[ ## completed ## ]]"
        call("configure_lm", provider="scripted", answers=[answer], session_id="s")
        inputs = {"q": "?"}
        return call("execute_program", program_id=program_id, inputs=inputs, session_id="s")

    run.call = call
    return run


@pytest.fixture(scope="module")
def started(request):
    """Return a worker of the module, with the flags in its FLAGS."""
    worker = DspyWorker(*getattr(request.module, "FLAGS", ()))
    yield worker
    worker.peer.finish()


@pytest.fixture
def worker(started):
    """Return the worker of the module, without programs and tools."""
    started.call("cleanup")
    started.answers = {}
    return started
