"""JSON Schemas as the BAML format writes types: `{name: string, age: int or null}`, one property in a line."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

from bridge.adapters.dspy.native_types import Described
from bridge.adapters.dspy.prompt_fields import LabelledSignature
from bridge.adapters.dspy.schemas.parts import target

_NAMES = {"integer": "int", "number": "float"}
_INDENT = "  "
_WORD = re.compile(r"\w+")


def with_brief_types(signature: LabelledSignature) -> LabelledSignature:
    """Return a signature whose types with JSON Schemas have a brief description as their names."""
    changed = copy.copy(signature)
    for side in ("input_fields", "output_fields"):
        setattr(changed, side, {label: _brief(field) for label, field in getattr(signature, side).items()})
    return changed


def _brief(field: Any) -> Any:
    if not (isinstance(field.annotation, type) and issubclass(field.annotation, Described)):
        return field
    changed = copy.copy(field)
    changed.annotation = type(_Writer(field.annotation.schema).text(field.annotation.schema), (), {})
    return changed


class _Writer:
    """Writes one schema. A definition that is used several times is written once, with its name."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._encoded = json.dumps(root)
        self._written: set[str] = {"#"}

    def text(self, schema: Any, indent: str = "") -> str:
        """Return the description of `schema`, a part of the root."""
        if not isinstance(schema, dict):
            return "any"
        if "$ref" in schema:
            return self._reference(schema["$ref"], indent)
        if "enum" in schema or "const" in schema:
            choices = schema.get("enum", [schema.get("const")])
            return " or ".join(json.dumps(each, ensure_ascii=False) for each in choices)
        parts = [part for keyword in ("anyOf", "oneOf", "allOf") for part in schema.get(keyword, ())]
        kinds = schema.get("type")
        if isinstance(kinds, list):
            parts = [{**schema, "type": kind} for kind in kinds]
        if parts:
            return " or ".join(dict.fromkeys(self.text(part, indent) for part in parts))
        if schema.get("properties"):
            return self._object(schema["properties"], indent)
        if kinds == "array":
            return f"{self.text(schema.get('items', True), indent)}[]"
        if kinds == "object":
            return f"dict[string, {self.text(schema.get('additionalProperties', True), indent)}]"
        name = _NAMES.get(str(kinds), str(kinds or "any"))
        return f"{name} ({schema['format']})" if kinds == "string" and "format" in schema else name

    def _reference(self, reference: str, indent: str) -> str:
        name = reference.rpartition("/")[2].lstrip("#") or str(self._root.get("title", "object"))
        if reference in self._written:
            return _word(name)
        self._written.add(reference)
        text = self.text(target(self._root, reference), indent)
        is_repeated = self._encoded.count(json.dumps(reference)) > 1
        return f"{_word(name)} {text}" if is_repeated and text.startswith("{") else text

    def _object(self, properties: dict[str, Any], indent: str) -> str:
        lines = ["{"]
        for name, each in properties.items():
            description = each.get("description") if isinstance(each, dict) else None
            if isinstance(description, str):
                lines.append(f"{indent}{_INDENT}# {' '.join(description.split())}")
            lines.append(f"{indent}{_INDENT}{_word(name)}: {self.text(each, indent + _INDENT)},")
        return "\n".join([*lines, f"{indent}}}"])


def _word(name: str) -> str:
    return name if _WORD.fullmatch(name) else json.dumps(name, ensure_ascii=False)
