"""Signatures from type hints."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypedDict

import msgspec
import pydantic
import pytest

from bridge import Dispatcher
from bridge.adapters.dspy import adapter
from bridge.signatures import Audio, Code, File, History, Image, signature


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Item(TypedDict):
    name: str
    count: Annotated[int, msgspec.Meta(ge=1)]


class Person(pydantic.BaseModel):
    name: str
    age: Annotated[int, pydantic.Field(ge=0)] = 0


class Place(msgspec.Struct):
    city: str
    zip: Annotated[str, msgspec.Meta(pattern="^[0-9]+$")] = "0"


def field(hint: Any) -> dict[str, Any]:
    """Return the field of an output with this hint."""
    (only,) = signature({}, {"a": hint})["outputs"]
    assert only.pop("name") == "a"
    return only


@pytest.mark.parametrize(
    ("hint", "name"),
    [
        *((str, "string"), (int, "integer"), (float, "float"), (bool, "boolean"), (Any, "any")),
        *((datetime.date, "date"), (datetime.datetime, "datetime"), (Decimal, "decimal"), (dict, "dict")),
        (list[str], "list<string>"),
        (dict[str, list[int]], "dict<string, list<integer>>"),
        (str | None, "union<string|null>"),
        (Literal["a", 'b"c', 1, True], 'enum<"a"|"b\\"c"|1|true>'),
        (Color, 'enum<"red"|"blue">'),
        (list[Image], "list<image>"),
        *((Audio, "audio"), (File, "file"), (History, "history"), (Code, "code")),
        ("code<sql>", "code<sql>"),
    ],
)
def test_types_with_names(hint, name):
    """They are sent as names, which prompts show."""
    assert field(hint) == {"type": name}


def test_other_types_are_json_schemas():
    """Members and constraints are those of the class, whichever library it is of."""
    people = field(list[Person])["json_schema"]
    assert people["items"] == {"$ref": "#/$defs/Person"}
    assert people["$defs"]["Person"]["properties"]["age"]["minimum"] == 0
    place = field(Place)["json_schema"]
    assert place["$defs"]["Place"]["properties"]["zip"]["pattern"] == "^[0-9]+$"
    assert field(Annotated[float, pydantic.Field(ge=0, le=1)]) == {
        "json_schema": {"type": "number", "minimum": 0, "maximum": 1}
    }


def test_descriptions_defaults_and_prefixes():
    """A text in `Annotated` is the description; a map has all that a field may have."""
    assert field(Annotated[str, "the answer"]) == {"type": "string", "description": "the answer"}
    described = field(Annotated[int, pydantic.Field(ge=0, description="a number")])
    assert described["description"] == "a number"
    given = {"type": list[str], "default": [], "prefix": "Words:", "description": "some"}
    assert field(given) == {**given, "type": "list<string>"}


class Question(NamedTuple):
    question: str
    day: datetime.date | None = None


@dataclasses.dataclass
class Page:
    page: Image
    language: Annotated[str, "of the answer"] = "de"
    kind: ClassVar[str] = "page"


class Answer(pydantic.BaseModel):
    answer: str = pydantic.Field(description="one word")
    score: float = pydantic.Field(1.0, ge=0, le=1)


def test_classes_are_sides():
    """Their defaults are those of the fields."""
    assert signature(Question, {"a": str})["inputs"] == [
        {"name": "question", "type": "string"},
        {"name": "day", "type": "union<date|null>", "default": None},
    ]
    assert signature(Page, {"a": str})["inputs"] == [
        {"name": "page", "type": "image"},
        {"name": "language", "type": "string", "description": "of the answer", "default": "de"},
    ]
    sent = signature(Item, Answer, name="Ask", description="Be brief.")
    assert (sent["name"], sent["description"]) == ("Ask", "Be brief.")
    assert [entry["name"] for entry in sent["inputs"]] == ["name", "count"]
    answer, score = sent["outputs"]
    assert answer == {"name": "answer", "type": "string", "description": "one word"}
    assert score["default"] == 1.0
    assert score["json_schema"]["maximum"] == 1


def summarize(
    text: str, photo: Image, words: Annotated[int, pydantic.Field(ge=1), "at most"] = 50, kind: str | None = None
) -> Answer:
    """Summarize the text."""


def translate(text, language: Literal["de", "fr"] = "de"): ...


def test_functions():
    """Parameters are inputs; what is returned are the outputs, by field if it is a class with annotations."""
    sent = signature(summarize)
    assert (sent["name"], sent["description"]) == ("summarize", "Summarize the text.")
    assert sent["inputs"] == [
        {"name": "text", "type": "string"},
        {"name": "photo", "type": "image"},
        {
            "name": "words",
            "json_schema": {"type": "integer", "minimum": 1},
            "description": "at most",
            "default": 50,
        },
        {"name": "kind", "type": "union<string|null>", "default": None},
    ]
    assert [field["name"] for field in sent["outputs"]] == ["answer", "score"]
    assert signature(translate) == {
        "name": "translate",
        "inputs": [
            {"name": "text", "type": "string"},
            {"name": "language", "type": 'enum<"de"|"fr">', "default": "de"},
        ],
        "outputs": [{"name": "answer", "type": "string"}],
    }


def test_functions_that_are_no_signatures():
    for function, reason in ((lambda *texts: "", "fixed number"), (Answer, "inputs and outputs")):
        with pytest.raises(TypeError, match=reason):
            signature(function)


class Tree(pydantic.BaseModel):
    value: Decimal
    day: datetime.date | None = None
    children: list[Tree] = []


@pytest.mark.parametrize(
    "hint", [Tree, list[Place], dict[str, Item], Person | None, set[str], Color, Code, "code<sql>"]
)
def test_a_worker_accepts_them(hint):
    """So do types that refer to themselves."""
    args = {"signature": signature({"page": Image, "earlier": History, "n": Annotated[int, "n"]}, {"a": hint})}
    reply = Dispatcher(adapter).call(msgspec.json.encode({"id": 1, "command": "create_program", "args": args}))
    assert msgspec.json.decode(reply)["success"], reply


class Own:
    pass


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"a": Own}, "outputs: a: "),
        ({"a": {"type": str, "defualt": ""}}, "outputs: a: a field has a type, and maybe description, default, prefix"),
        ([str], "outputs must be a map from names to types, or a class with annotations"),
    ],
)
def test_mistakes(fields, reason):
    """They name the field."""
    with pytest.raises(TypeError, match=reason):
        signature({}, fields)
