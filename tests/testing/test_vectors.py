"""The double answers what a worker answers, which tests/vectors/mock.json has (tests/test_vectors.py compares it)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import mock_vectors
from bridge import Options
from bridge.testing.commands import MockDispatcher
from bridge.testing.script import Script

VECTORS = Path(__file__).parent.parent / "vectors"
CONVERSATIONS = json.loads((VECTORS / "mock.json").read_text())["conversations"]
DATE, TIME = r"\d{4}-\d\d-\d\d", r"\d\d:\d\d(:\d\d)?"
KINDS = {"date": DATE, "time": TIME, "datetime": f"{DATE}T{TIME}Z?", "uuid": "[0-9a-f-]{36}", "decimal": r"\d+\.\d+"}


def shape(value: Any) -> Any:
    """Return the type of a value as JSON has it, and of texts what they denote."""
    if isinstance(value, dict):
        return {"map": [shape(each) for each in value.values()]}
    if isinstance(value, list):
        return [shape(each) for each in value]
    if isinstance(value, str):
        return next((kind for kind, form in KINDS.items() if re.fullmatch(form, value)), "text")
    return type(value).__name__


def with_shapes(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply with the types of outputs in place of their values."""
    result = reply.get("result")
    if isinstance(result, dict) and isinstance(result.get("results"), list):
        return {**reply, "result": {**result, "results": [_with_shapes(row) for row in result["results"]]}}
    return {**reply, "result": _with_shapes(result)} if isinstance(result, dict) else reply


def _with_shapes(row: dict[str, Any]) -> dict[str, Any]:
    if "outputs" not in row:
        return row
    return {**row, "outputs": {name: shape(value) for name, value in row["outputs"].items()}}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_double_answers_as_the_worker(name):
    """Only the values of outputs differ; they have the same types."""
    conversation = CONVERSATIONS[name]
    double = MockDispatcher(Script(), Options(**conversation["flags"]), conversation["programs"])
    answered = mock_vectors.replies(name, double)
    for exchange, reply in zip(conversation["exchanges"], answered, strict=True):
        assert with_shapes(reply) == with_shapes(exchange["reply"]), exchange["request"]
