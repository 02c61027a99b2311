"""Reads DSPy's prompts, and writes replies as its adapters parse them.

Supported are all formats of `layouts`, and what ReAct adds to them: the list of tools and the trajectory.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic

from bridge.adapters.offline.examples import Example
from bridge.adapters.offline.layouts import REPLY_RULES, Layout, sections
from bridge.adapters.type_names import TypeNameError, parse_type

if TYPE_CHECKING:
    from collections.abc import Iterator

Schema = Mapping[str, Any]

_FIELD = re.compile(r"^\d+\. `(\w+)` \((.+?)\):(.*)$", re.MULTILINE)
_CONSTRAINTS = re.compile(r"^\d+\. `(\w+)` .*\nConstraints: (.*)$", re.MULTILINE)
_LISTS = re.compile(
    r"(?:Your input fields are|As input, you will be provided with):\n(?P<inputs>.*?)"
    r"^(?:Your output fields are|Your outputs must contain):\n(?P<outputs>.*?)"
    r"(?=^All interactions will be structured|^You should lay out your outputs|\Z)",
    re.DOTALL | re.MULTILINE,
)
_JSON_FORMAT = "Outputs will be a JSON object with the following fields.\n\n"
_NOTE = re.compile(r"\{(\w+)\} {8}# note: the value you produce (.*)")
_SCHEMA_NOTE = "must adhere to the JSON schema: "
_OPTIONS_NOTE = "must be one of: "
_EXTRACTION = "Your job is to extract the fields from the text verbatim."


class Output(NamedTuple):
    """The type and the description of an output field."""

    schema: Schema
    description: str


@lru_cache(maxsize=64)
def outputs(system: str) -> Mapping[str, Output]:
    """Return the output fields that a system message declares; empty if it is not DSPy's."""
    listed = _listed(system, "outputs")
    notes = dict(_NOTE.findall(_field_notes(system)))
    constraints = {name: _constraints(text) for name, text in _CONSTRAINTS.findall(listed)}
    return {
        name: Output({**_schema(type_name, notes.get(name, "")), **constraints.get(name, {})}, description.strip())
        for name, type_name, description in _FIELD.findall(listed)
    }


def _listed(system: str, side: str) -> str:
    """Return the list of the input or the output fields in a system message, or ""."""
    lists = _LISTS.search(system)
    return lists[side] if lists else ""


def _constraints(text: str) -> dict[str, Any]:
    """Return the bounds of numbers and of lengths, and the format of a text, as keywords of a JSON Schema."""
    found: dict[str, Any] = {}
    for words, keyword in _BOUNDS.items():
        bound = re.search(rf"(?:^|, ){words}: (?:(-?[\d.e+-]+)|([\w-]+))(?:,|$)", text)
        if bound:
            found[keyword] = json.loads(bound[1]) if bound[1] else bound[2]
    return found


_BOUNDS = {
    "greater than or equal to": "minimum",
    "less than or equal to": "maximum",
    "greater than": "exclusiveMinimum",
    "less than": "exclusiveMaximum",
    "maximum length": "maxLength",
    "has the format": "format",
}


def _field_notes(system: str) -> str:
    """Return the text with the notes on the types; the JSON format has them inside JSON strings."""
    fields = system.partition(_JSON_FORMAT)[2]
    return "\n".join(json.JSONDecoder().raw_decode(fields)[0].values()) if fields else system


def _schema(type_name: str, note: str) -> Schema:
    """Return the JSON Schema of an output: as DSPy printed it, or that of the type it named."""
    if type_name == "Decimal":
        return {"type": "number"}  # DSPy's schema of it accepts any text
    if note.startswith(_OPTIONS_NOTE):
        options = note.removeprefix(_OPTIONS_NOTE).split("; ")
        return {"enum": [int(each) if each.isdecimal() else each for each in options]}
    schema = json.loads(note.removeprefix(_SCHEMA_NOTE)) if note.startswith(_SCHEMA_NOTE) else _schema_of(type_name)
    if type_name.startswith(("dict[int", "dict[float", "dict[bool")):
        schema["propertyNames"] = {"const": "1"}  # DSPy's schema of it has keys of any text
    return dict(schema)


def _schema_of(type_name: str) -> dict[str, Any]:
    try:
        return pydantic.TypeAdapter(parse_type(type_name)).json_schema()
    except (TypeNameError, pydantic.PydanticUserError):  # source code is text
        return {"type": "string"}


def inputs(system: str, message: str, layout: Layout) -> dict[str, str]:
    """Return the texts of the declared input fields, up to the rules for the reply."""
    rules = list(REPLY_RULES.finditer(message))
    rest = message[: rules[-1].start()] if rules else message
    texts = {}
    name = ""
    for declared in _input_names(system):
        text, header, after = rest.partition(layout.opening(declared))
        if header:
            texts[name] = text.strip().removesuffix(layout.closing(name)).strip()
            name, rest = declared, after
    texts[name] = rest.strip().removesuffix(layout.closing(name)).strip()
    texts.pop("", None)
    return texts


def is_extraction(system: str) -> bool:
    """Return whether the outputs are to be found in an answer in prose, the second step of the format in two steps."""
    return _EXTRACTION in system


@lru_cache(maxsize=64)
def _input_names(system: str) -> tuple[str, ...]:
    return tuple(name for name, _, _ in _FIELD.findall(_listed(system, "inputs")))


def examples(system: str, messages: Sequence[str], layout: Layout) -> list[Example]:
    """Return the examples in the messages before the last one: inputs and the reply, in turn."""
    found = []
    for asked, replied in zip(messages[::2], messages[1::2], strict=False):
        texts = inputs(system, asked, layout)
        found.append(Example("\n".join(texts.values()), _replied(replied)))
    return found


def _replied(text: str) -> dict[str, str]:
    """Return the texts of the fields in a reply."""
    if text.startswith("{"):
        try:
            return {name: str(value) for name, value in json.loads(text).items()}
        except (ValueError, RecursionError):
            return {}
    return dict(sections(text))


def passages(text: str) -> list[str]:
    """Return the texts in one input; DSPy prints lists and objects as JSON, or lists numbered."""
    try:
        parsed = json.loads(text) if text[:1] in ("[", "{") else text
    except (ValueError, RecursionError):
        parsed = re.sub(r"^\[\d+\] (?=«)", "", text, flags=re.MULTILINE)
    return [leaf for leaf in _leaves(parsed) if leaf != "N/A"]


def _leaves(parsed: Any) -> Iterator[str]:
    if isinstance(parsed, dict):
        for key, each in parsed.items():
            yield from (f"{key}: {leaf}" for leaf in _leaves(each))
    elif isinstance(parsed, list):
        for each in parsed:
            yield from _leaves(each)
    else:
        yield str(parsed)


# ReAct


class Tool(NamedTuple):
    """A tool that a prompt offers; each argument has a JSON Schema."""

    name: str
    description: str
    arguments: Mapping[str, Schema]


_TOOL = re.compile(
    r"^\s*\(\d+\) (?P<name>[\w.-]+)(?:, whose description is <desc>(?P<description>.*)</desc>)?\."
    r" It takes arguments (?P<arguments>\{.*\})\.$",
    re.MULTILINE,
)


@lru_cache(maxsize=64)
def tools(system: str) -> tuple[Tool, ...]:
    """Return the tools that a system message lists, without `finish`."""
    return tuple(
        Tool(found["name"], found["description"] or "", ast.literal_eval(found["arguments"]))
        for found in _TOOL.finditer(system)
        if found["name"] != "finish"
    )


def observations(trajectory: str) -> list[str]:
    """Return the results of tools so far, without `finish`."""
    results = []
    tool = ""
    for name, text in sections(trajectory):
        kind = name.rpartition("_")[0]
        if kind == "tool_name":
            tool = text
        elif kind == "observation" and tool != "finish":
            results.append(text)
    return results
