"""Fills values of a JSON Schema with the answer that a reading found.

Every output type of a signature has a JSON Schema. If the type does not say what is wanted (a score, a year, a
summary), the name of the field may. If nothing was found, the value is the emptiest one that the schema allows.
"""

from __future__ import annotations

import datetime
import math
import re
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from bridge.adapters.offline.choices import SIGNS, choose, everything, overlap, sentiment
from bridge.adapters.offline.reading import Reading, words
from bridge.adapters.offline.short_answers import (
    NOT_FOUND,
    agrees,
    answer,
    names,
    numbers,
    question_kind,
    span,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

MAXIMUM_VALUES = 10_000  # in one value: a schema of a few definitions may ask for any number
MAXIMUM_ITEMS = 5  # of a list that takes the best few of many
SUMMARY_SENTENCES = 2

Schema = Mapping[str, Any]


def value(schema: Schema, name: str, reading: Reading) -> Any:
    """Return a value for the field `name` that is valid under `schema` (pydantic's subset)."""
    return _value(_Field(name, reading, schema.get("$defs", {}), frozenset(), iter(range(MAXIMUM_VALUES))), schema)


class _Field(NamedTuple):
    name: str
    reading: Reading
    definitions: Schema
    open: frozenset[str]  # the references around this value: recursion ends at them
    left: Iterator[int]  # yields as often as there may be further values

    @property
    def role(self) -> str:
        """Return what the last known word of the name asks for, or ""."""
        asked = re.findall(r"[a-z]+", self.name.lower())
        return next((_ROLES[word] for word in reversed(asked) if word in _ROLES), "")


_ROLES = {
    word: role
    for role, asked in {
        "score": "score confidence probability relevance similarity certainty likelihood",
        "reasoning": "reasoning rationale explanation justification thought steps",
        "summary": "summary abstract gist overview",
        "sentence": "sentence sentences evidence quote quotes passage context citations facts",
        "keyword": "keyword keywords topic topics tag tags term terms",
        "name": "name names author authors person people artist inventor writer entity entities",
        "place": "place places city cities country countries location locations",
        "year": "year",
        "date": "date day",
        "number": "number count amount quantity age",
        "reason": "reason cause",
    }.items()
    for word in asked.split()
}


def _value(field: _Field, schema: Schema) -> Any:
    if next(field.left, None) is None:
        return None
    if "$ref" in schema:
        field = field._replace(open=field.open | {schema["$ref"]})
        schema = _resolved(field, schema)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return choose(schema["enum"], field.reading)
    if isinstance(schema.get("type"), list):
        return _any_of(
            field, [{"type": each} if each == "null" else {**schema, "type": each} for each in schema["type"]]
        )
    if alternatives := schema.get("anyOf", schema.get("oneOf")):
        return _any_of(field, alternatives)
    return _BUILDERS.get(str(schema.get("type")), _string)(field, schema)


def _resolved(field: _Field, schema: Schema) -> Schema:
    name = schema.get("$ref", "").rpartition("/")[2]
    return field.definitions.get(name, {}) if name else schema


def _any_of(field: _Field, schemas: Sequence[Schema]) -> Any:
    """Return a value of the first alternative that fits the answer; null if nothing was found."""
    null = {"type": "null"}
    others = [each for each in schemas if each != null and each.get("$ref") not in field.open]
    if null in schemas and not (others and field.reading.found):
        return None
    return _value(field, next((each for each in others if _fits(field, each)), others[0]))


def _fits(field: _Field, schema: Schema) -> bool:
    kind = field.role or question_kind(field.reading.question)
    match schema.get("type"):
        case "integer" | "number":
            return kind in ("number", "year", "score")
        case "boolean":
            return kind == "decision"
    return True


# Strings


def _string(field: _Field, schema: Schema) -> str:
    if schema.get("format") == "decimal":
        return str(_number(field, schema))
    if schema.get("format") in _FORMATS:
        return _FORMATS[schema["format"]](_span(field, "date"))
    return _text(field)[: schema.get("maxLength")]


def _text(field: _Field) -> str:
    reading, role = field.reading, field.role
    match role:
        case "reasoning":
            return _reasoning(reading)
        case "score":
            return str(_score(reading))
        case "keyword":
            return ", ".join(_keywords(reading)) or NOT_FOUND
        case "sentence" | "summary":
            best = reading.found[: SUMMARY_SENTENCES if role == "summary" else 1]
            ordered = sorted(best, key=lambda match: match.position)
            return " ".join(match.sentence for match in ordered) or NOT_FOUND
    if role == "name" and question_kind(reading.question) not in ("", "name"):
        # The field asks for a name and the question does not, so the name may be one in the question.
        return next(iter(names(answer(reading).sentence)), NOT_FOUND)
    return (_span(field, role) or NOT_FOUND) if role else answer(reading).text


def _span(field: _Field, kind: str) -> str:
    found = span(field.reading, kind)
    return found.text if found else ""


def _reasoning(reading: Reading) -> str:
    """Return one sentence on how the answer was found."""
    if not reading.found:
        return "No sentence of the inputs matches the question."
    sentence = answer(reading).sentence
    if not words(reading.question):
        return f"The sentence '{sentence}' says most of what the inputs are about."
    return f"The passage sentence '{sentence}' matches the question best."


def _keywords(reading: Reading) -> list[str]:
    text = [word.lower() for match in reading.found for word in words(match.sentence)]
    return [word for word, _ in Counter(text).most_common(MAXIMUM_ITEMS)]


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")


def _date(text: str) -> str:
    """Return the ISO form of a date; missing parts are 1, and no date is 1970-01-01."""
    year = re.search(r"\b[1-9]\d{3}\b", text)
    day = re.search(r"\b\d{1,2}\b(?!-)", text)
    spoken = [_MONTHS.index(word[:3]) + 1 for word in text.lower().split() if word[:3] in _MONTHS]
    written = [int(month) for month in re.findall(r"-(\d\d)-", text)]
    parts = int(year[0]) if year else 1970, [*spoken, *written, 1][0]
    try:
        return datetime.date(*parts, int(day[0]) if day else 1).isoformat()
    except ValueError:
        return datetime.date(parts[0], 1, 1).isoformat()


_FORMATS: dict[str, Callable[[str], str]] = {
    "date": _date,
    "date-time": lambda text: f"{_date(text)}T00:00:00Z",
    "duration": lambda _: "PT0S",
    "time": lambda _: "00:00:00",
    "uuid": lambda _: str(uuid.UUID(int=0)),
}


# Numbers and truth


def _number(field: _Field, schema: Schema) -> float:
    found = _score(field.reading) if field.role == "score" else _first_number(field)
    if found <= schema.get("exclusiveMinimum", -math.inf):
        found = schema["exclusiveMinimum"] + 1
    if found >= schema.get("exclusiveMaximum", math.inf):
        found = schema["exclusiveMaximum"] - 1
    return float(min(max(found, schema.get("minimum", found)), schema.get("maximum", found)))


def _integer(field: _Field, schema: Schema) -> int:
    return round(_number(field, schema))


def _first_number(field: _Field) -> float:
    kind = field.role or question_kind(field.reading.question)
    asked = "year" if kind in ("year", "date") else "number"
    return next(iter(numbers(_span(field, asked))), 0.0)


def _score(reading: Reading) -> float:
    return round(reading.score, 3)


def _boolean(field: _Field, schema: Schema) -> bool:
    wanted = [SIGNS[word] for word in field.name.lower().split("_") if word in SIGNS]
    if wanted:
        return sentiment(everything(field.reading)) in wanted
    if question_kind(field.reading.question) == "decision":
        return agrees(field.reading)
    return bool(field.reading.found)


# Lists and objects


def _array(field: _Field, schema: Schema) -> list[Any]:
    if "prefixItems" in schema:
        return [_value(field, item) for item in schema["prefixItems"]]
    least, most = schema.get("minItems", 0), schema.get("maxItems")
    ends = schema.get("items", {}).get("$ref") in field.open or not field.reading.found
    found = [] if ends else _items(field, schema.get("items", {}))
    if schema.get("uniqueItems"):
        found = [one for index, one in enumerate(found) if one not in found[:index]]
    missing = [schema.get("items", {})] * max(0, least - len(found))
    return (found + [_value(field, item) for item in missing])[:most]


def _items(field: _Field, schema: Schema) -> list[Any]:
    item = _resolved(field, schema)
    sentence = answer(field.reading).sentence
    if "enum" in item:
        mentioned = [option for option in item["enum"] if overlap(str(option), sentence)]
        return mentioned or [_value(field, item)]
    if item.get("type") in ("integer", "number"):
        return [round(one) if item["type"] == "integer" else one for one in numbers(sentence)]
    if _is_text(item):
        return _strings(field)
    return [_value(field, schema)]


def _is_text(schema: Schema) -> bool:
    is_plain = not {"$ref", "anyOf", "oneOf", "const", "format"} & schema.keys()
    return is_plain and schema.get("type", "string") == "string"


def _strings(field: _Field) -> list[str]:
    """Return the several answers of the text, by the name of the field or as an enumeration."""
    reading = field.reading
    match field.role:
        case "keyword":
            return _keywords(reading)
        case "sentence" | "summary":
            return [match.sentence for match in reading.found[:MAXIMUM_ITEMS]]
        case "name" | "place":
            return names(everything(reading._replace(question="")))
        case "":
            kind = question_kind(reading.question)
            several = _span(field, "things") if kind in ("", "thing", "things") else ""
            return _BETWEEN.split(several) if several else [answer(reading).text]
    return [_text(field)]


_BETWEEN = re.compile(r",? (?:and|or) |, ")


def _object(field: _Field, schema: Schema) -> dict[str, Any]:
    if "properties" in schema:
        # A property that would repeat what contains it is left out, unless it must be there.
        required = schema.get("required", ())
        parts = schema["properties"].items()
        named = [(name, each) for name, each in parts if each.get("$ref") not in field.open or name in required]
        return {name: _value(field._replace(name=name), each) for name, each in named}
    inner = schema.get("additionalProperties")
    if isinstance(inner, Mapping) and inner.get("$ref") in field.open:
        return {}
    if isinstance(inner, Mapping):
        keys = schema.get("propertyNames")
        key = _value(field, {"type": "string", **keys}) if keys else "answer"
        return {key: _value(field, inner)}
    return _any(field, schema) if field.reading.found else {}


def _any(field: _Field, schema: Schema) -> dict[str, Any]:
    return {**answer(field.reading)._asdict(), "score": _score(field.reading)}


_BUILDERS: dict[str, Callable[[_Field, Schema], Any]] = {
    "array": _array,
    "boolean": _boolean,
    "integer": _integer,
    "null": lambda field, schema: None,
    "number": _number,
    "object": _object,
    "string": _string,
}
