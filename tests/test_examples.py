"""The Python examples run as they describe."""

from __future__ import annotations

import os

import numpy
import pytest

from bridge import Client, errors


def test_an_adapter_of_your_own(repository):
    """It is loaded by name, and its commands are added to those of the worker."""
    path = os.pathsep.join([str(repository / "examples" / "python"), os.environ.get("PYTHONPATH", "")])
    with Client.start(adapter="own_adapter:adapter", env={"PYTHONPATH": path}) as client:
        assert client.call("median", {"values": [3, 1, 2]}) == {"median": 2.0}
        with pytest.raises(errors.InvalidArgs, match="no values"):
            client.call("median", {"values": []})
        with pytest.raises(errors.InvalidArgs) as raised:
            client.call("median", {"values": [1, "x"]})
        assert raised.value.details["path"] == "args.values[1]"
        for count in (2, 4):
            result = client.call("remember", {"values": [1, 2]}, session_id="s")
            assert result == {"count": count}
        described = client.call("describe")["commands"]["median"]
        assert described["lane"] == "inline"
        assert described["help"].startswith("Return the median")


def test_arrays_as_args_and_results(repository):
    """Arrays of other types or shapes are refused with their path before the handler runs."""
    path = os.pathsep.join([str(repository / "examples" / "python"), os.environ.get("PYTHONPATH", "")])
    a, b = numpy.arange(6, dtype="f4").reshape(2, 3), numpy.ones((3, 4), "f4")
    with Client.start(adapter="matrices:adapter", env={"PYTHONPATH": path}) as client:
        product = client.call("multiply", {"a": a, "b": b})["product"]
        assert product.tolist() == (a @ b).tolist()
        with pytest.raises(errors.InvalidArgs, match=r"Expected `f32\[k=3, m\]`, got") as raised:
            client.call("multiply", {"a": a, "b": a})
        assert raised.value.details["path"] == "args.b"


def test_a_module_of_two_stages_with_retrieval(repository):
    """Each stage streams its field; the passages that are found decide the answer."""
    path = os.pathsep.join([str(repository / "examples" / "python"), os.environ.get("PYTHONPATH", "")])
    run = {"program_id": "research", "inputs": {"question": "Where was Mozart born?"}}
    with Client.start(flags=["--program", "research=research:Research"], env={"PYTHONPATH": path}) as client:
        client.call("configure_lm", {"provider": "offline"})
        with client.stream("execute_program", run) as stream:
            stages = {(data["predictor"], data["field"]) for event, data in stream if event == "chunk"}
            outputs = stream.result()["outputs"]
        assert stages == {("rewrite", "query"), ("respond", "answer")}
        assert outputs["answer"] == "Salzburg"
        assert "Salzburg" in outputs["passages"][0]
        answers = [{"query": "highest mountain"}, {"answer": "Everest"}]
        client.call("configure_lm", {"provider": "scripted", "answers": answers})
        run["inputs"] = {"question": "What is above all?", "k": 1}
        outputs = client.call("execute_program", run)["outputs"]
        assert outputs["answer"] == "Everest"
        assert outputs["passages"] == ["Mount Everest, at 8849 metres, is the highest mountain above sea level."]
