"""What the keywords of JSON Schema apply to, and the Python types of its types and formats."""

from __future__ import annotations

import datetime
import uuid
from decimal import Decimal
from types import NoneType
from typing import Any

from bridge.adapters.dspy.schemas.constraints import KEYWORDS

NUMBER_FORMATS: dict[str, dict[str, Any]] = {
    "int32": {"minimum": -(1 << 31), "maximum": (1 << 31) - 1},
    "int64": {"minimum": -(1 << 63), "maximum": (1 << 63) - 1},
    "float": {},
    "double": {},
}
TYPE_NAMES = ("string", "integer", "number", "boolean", "null", "array", "object")
TYPES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": NoneType}
FORMATS: dict[str, Any] = {
    "date": datetime.date,
    "date-time": datetime.datetime,
    "time": datetime.time,
    "decimal": Decimal,
    **dict.fromkeys(("uuid", "uuid1", "uuid3", "uuid4", "uuid5"), uuid.UUID),
}
DEFINITIONS = ("$defs", "definitions")
ANNOTATIONS = frozenset(
    {
        *("title", "description", "default", "example", "examples", "deprecated", "readOnly", "writeOnly"),
        *("$schema", "$id", "$comment", "discriminator", *DEFINITIONS),
        *("contentEncoding", "contentMediaType", "contentSchema"),
    }
)
# The keywords of one type, besides its constraints.
STRUCTURE = {
    "items": "array",
    "prefixItems": "array",
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "propertyNames": "object",
}
# The names of the types that a value of an enum has.
JSON_TYPES: dict[type, set[str]] = {
    str: {"string"},
    bool: {"boolean"},
    int: {"integer", "number"},
    float: {"number"},
    NoneType: {"null"},
}
_OF_KIND = {
    "text": frozenset({"string"}),
    "number": frozenset({"integer", "number"}),
    "list": frozenset({"array"}),
    "map": frozenset({"object"}),
}
APPLIES = {keyword: _OF_KIND[each.kind] for keyword, each in KEYWORDS.items()} | {
    keyword: frozenset({name}) for keyword, name in STRUCTURE.items()
}
COMBINATIONS = ("$ref", "allOf", "anyOf", "oneOf")
KNOWN = frozenset({*ANNOTATIONS, *KEYWORDS, *STRUCTURE, *COMBINATIONS, "type", "enum", "const"})
