"""Fields of every type in every format of prompts and replies, against a provider on loopback."""

from __future__ import annotations

import base64
import json

import pytest

from model_server import KEY, ModelServer, OpenAI

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n1234").decode()
PERSON = {
    "type": "object",
    "title": "Person",
    "properties": {"name": {"type": "string"}, "friends": {"type": "array", "items": {"$ref": "#"}, "default": []}},
    "required": ["name"],
    "additionalProperties": False,
}
SIGNATURE = {
    "inputs": [
        {"name": "question"},
        {"name": "photo", "type": "image"},
        {"name": "earlier", "type": "history"},
        {"name": "source", "type": "code"},
        {"name": "who", "json_schema": PERSON},
    ],
    "outputs": [
        {"name": "person", "json_schema": PERSON},
        {"name": "score", "type": "integer", "constraints": {"ge": 1, "le": 5}},
        {"name": "code", "type": "code[python]"},
    ],
}
INPUTS = {
    "question": "Who?",
    "photo": {"data": PNG},
    "earlier": [{"question": "Before?", "source": "x = 1", "person": {"name": "Z"}, "score": 2, "code": "y"}],
    "source": "print(1)",
    "who": {"name": "W"},
}
ANSWER = {"person": {"name": "A", "friends": [{"name": "B"}]}, "score": 3, "code": "```python\nx = 1\n```"}


def text_of(value):
    return value if isinstance(value, str) else json.dumps(value)


def sections(values):
    parts = [f"[[ ## {name} ## ]]\n{text_of(value)}" for name, value in values.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def tags(values):
    return "\n".join(f"<{name}>\n{text_of(value)}\n</{name}>" for name, value in values.items())


def as_described(values):
    """Return JSON with the code as DSPy's schema of it describes it."""
    return json.dumps({**values, "code": {"code": values["code"]}})


@pytest.fixture
def run(ask, call):
    """Return a function run(format, write, answer): the reply of a run, and the requests."""

    def run(format, write, answer):
        with ModelServer(lambda body: (200, {}, OpenAI.whole(write(answer)))) as server:
            ask("configure_lm", model="openai/gpt-4o-mini", api_base=server.url + OpenAI.path, api_key=KEY, retries=0)
            ask("create_program", id="p", signature=SIGNATURE, adapter=format)
            return call("execute_program", program_id="p", inputs=INPUTS), server.requests

    return run


FORMATS = [
    ("chat", sections),
    ("json", json.dumps),
    ("json", as_described),
    ("baml", json.dumps),
    ("xml", tags),
    ("two_step", sections),
]


@pytest.mark.parametrize(("format", "write"), FORMATS)
def test_every_type(run, format, write):
    """Images are parts of the request, earlier turns are messages, and outputs are plain data."""
    reply, (request, *_) = run(format, write, ANSWER)
    assert reply["result"]["outputs"] == {
        "person": {"name": "A", "friends": [{"name": "B", "friends": []}]},
        "score": 3,
        "code": "x = 1",
    }
    *_, last = messages = request["messages"]
    assert [part["image_url"]["url"] for part in last["content"] if part["type"] == "image_url"] == [
        f"data:image/png;base64,{PNG}"
    ]
    roles = [message["role"] for message in messages]
    assert roles == ["system", "user", "assistant", "user"]
    assert "Before?" in messages[1]["content"]


def test_stages_of_a_pipeline_pass_them_on(ask):
    """Images, objects, and lists that contain themselves, described by different schemas."""
    tree = {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}, "$ref": "#/$defs/t"}
    outputs = {"who": {"json_schema": PERSON}, "tree": {"json_schema": tree}}
    first = {"inputs": {"photo": {"type": "image"}}, "outputs": outputs}
    tree = {"type": "array", "items": {"$ref": "#"}}
    inputs = {"who": {"json_schema": PERSON}, "tree": {"json_schema": tree}, "photo": {"type": "image"}}
    ask("create_program", id="first", signature=first)
    ask("create_program", id="second", signature={"inputs": inputs, "outputs": {"answer": {}}})
    signature = {"inputs": {"photo": {"type": "image"}}, "outputs": {"answer": {}}}
    stages = [{"name": name, "program": name} for name in ("first", "second")]
    ask("create_program", id="p", program_type="pipeline", signature=signature, stages=stages)
    with ModelServer(lambda body: (200, {}, OpenAI.whole(sections(answers.pop(0))))) as server:
        answers = [{"who": {"name": "A"}, "tree": [[], []]}, {"answer": "fine"}]
        ask("configure_lm", model="openai/gpt-4o-mini", api_base=server.url + OpenAI.path, api_key=KEY, retries=0)
        result = ask("execute_program", program_id="p", inputs={"photo": {"data": PNG}})
    assert result["outputs"] == {"answer": "fine"}
    assert all(str(request).count("image_url") for request in server.requests)


@pytest.mark.parametrize(("format", "write"), FORMATS)
def test_a_value_outside_its_constraint(run, format, write):
    reply, _ = run(format, write, {**ANSWER, "score": 9})
    assert reply["code"] == "lm_error"
    details = reply["details"]
    assert (details["path"], details["value"], details["constraint"]) == ("score", 9, {"maximum": 5})
