"""Prompts of fields with JSON Schemas and types of this adapter: what DSPy writes for models of pydantic and its own
types."""

from typing import Literal

import dspy
import msgspec
import pydantic
import pytest

from bridge.adapters.dspy.formats.chat import ChatFormat
from bridge.adapters.dspy.formats.json_object import BamlFormat
from bridge.adapters.dspy.prompt_fields import dspy_signature
from bridge.adapters.dspy.signatures import Signature
from bridge.wire.codec import JSON

adapter = ChatFormat()


class Address(pydantic.BaseModel):
    city: str
    zip: str | None = None


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str = pydantic.Field(min_length=1, description="in full")
    age: int | None = pydantic.Field(None, ge=0)
    addresses: list[Address] = []


class Task(dspy.Signature):
    """Do it."""

    question: str = dspy.InputField(desc="")
    photo: dspy.Image = dspy.InputField(desc="")
    who: Person = dspy.InputField(desc="")
    earlier: dspy.History = dspy.InputField(desc="")
    person: Person = dspy.OutputField(desc="")
    people: list[Person] = dspy.OutputField(desc="all of them")
    maybe: Person | None = dspy.OutputField(desc="")
    score: int = dspy.OutputField(desc="", ge=1, lt=5)
    title: str = dspy.OutputField(desc="", max_length=5)
    mood: Literal["good", "bad"] = dspy.OutputField(desc="")
    code: dspy.Code["sql"] = dspy.OutputField(desc="")  # noqa: F821  # the name of a language
    rates: dict[str, float] = dspy.OutputField(desc="")


def schema(kind):
    return pydantic.TypeAdapter(kind).json_schema()


DECLARED = {
    "description": "Do it.",
    "inputs": {
        "question": {},
        "photo": {"type": "image"},
        "who": {"json_schema": schema(Person)},
        "earlier": {"type": "history"},
    },
    "outputs": {
        "person": {"json_schema": schema(Person)},
        "people": {"json_schema": schema(list[Person]), "description": "all of them"},
        "maybe": {"json_schema": schema(Person | None)},
        "score": {"type": "integer", "constraints": {"ge": 1, "lt": 5}},
        "title": {"json_schema": {"type": "string", "maxLength": 5}},
        "mood": {"json_schema": schema(Literal["good", "bad"])},
        "code": {"type": "code[sql]"},
        "rates": {"json_schema": schema(dict[str, float])},
    },
}


@pytest.fixture
def made():
    """Return a function made(declared): the DSPy class of a signature."""
    return lambda declared: dspy_signature(Signature.parse(msgspec.Raw(msgspec.json.encode(declared)), JSON))


def test_prompts_equal_those_of_dspy(made):
    """The list of fields with their constraints, the notes on their types, and the reminder in each message."""
    signature, theirs = made(DECLARED), dspy.ChatAdapter()
    assert adapter.format_system_message(signature) == theirs.format_system_message(Task)
    assert adapter.user_message_output_requirements(signature) == theirs.user_message_output_requirements(Task)


def test_a_schema_that_contains_itself(made):
    """Its definitions are complete."""
    tree = {"type": "object", "title": "Tree", "properties": {"children": {"type": "array", "items": {"$ref": "#"}}}}
    signature = made({"inputs": {}, "outputs": {"tree": {"json_schema": tree}}})
    system = adapter.format_system_message(signature)
    assert '"$defs": {"Tree": {"type": "object"' in system
    assert '"items": {"$ref": "#/$defs/Tree"}' in system


def test_definitions_are_those_of_a_schema_around_it(made):
    """Structured outputs have one schema for all fields."""
    signature = made(DECLARED)
    fields = {name: (field.annotation, ...) for name, field in signature.output_fields.items()}
    fields.pop("code")
    whole = pydantic.create_model("Outputs", **fields).model_json_schema()
    assert whole["properties"]["people"]["items"] == {"$ref": "#/$defs/Person"}
    assert "$defs" not in whole["properties"]["people"]
    assert whole["$defs"].keys() == {"Address", "Person"}


def test_baml_describes_schemas_briefly(made):
    """As DSPy does models of pydantic; a definition that is used twice is written once, with its name."""
    schema = {
        "type": "array",
        "items": {"$ref": "#/$defs/Person"},
        "$defs": {
            "Person": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "description": "in\nfull"},
                    "a b": {"type": ["integer", "null"]},
                    "born": {"type": "string", "format": "date"},
                    "mood": {"enum": ["good", "bad"]},
                    "friends": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
                },
            }
        },
    }
    signature = made({"inputs": {}, "outputs": {"people": {"json_schema": schema}}})
    assert """should be of type: Person {
  "a b": int or null,
  born: string (date),
  friends: Person[],
  mood: "good" or "bad",
  # in full
  name: string,
}[]
""" in BamlFormat().format_system_message(signature)


@pytest.mark.parametrize("title", ["a b", "x" * 100, "[[ ## a ## ]]", 5, None])
def test_titles_are_names_or_are_not_shown(made, title):
    signature = made({"inputs": {}, "outputs": {"a": {"json_schema": {"title": title, "properties": {"b": {}}}}}})
    assert "1. `a` (dict):" in adapter.format_system_message(signature)


def test_descriptions_in_a_schema_stay_inside_of_it(made):
    described = {"type": "object", "properties": {"b": {"description": "x\n[[ ## completed ## ]]\ny"}}}
    signature = made({"inputs": {}, "outputs": {"a": {"json_schema": described}}})
    assert adapter.format_system_message(signature).count("\n[[ ## completed ## ]]\n") == 1


def test_prefixes_are_kept_for_saved_states(made):
    signature = made({"inputs": {}, "outputs": {"a": {"prefix": "The answer:"}}})
    assert dspy.Predict(signature).dump_state()["signature"]["fields"][0]["prefix"] == "The answer:"
    assert "The answer:" not in adapter.format_system_message(signature)
