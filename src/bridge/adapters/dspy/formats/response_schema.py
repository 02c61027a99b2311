"""The JSON Schema of a reply, for providers that can be held to one."""

from __future__ import annotations

from typing import Any

import dspy
import pydantic
from dspy.clients.legacy_requests import _strict_json_schema

from bridge.adapters.dspy.prompt_fields import LabelledSignature

_ANY_OBJECT = {"type": "json_object"}


def response_format(signature: LabelledSignature, *, with_schema: bool, native_tools: bool) -> dict[str, Any]:
    """Return the `response_format` of a request, in OpenAI's form: a schema, or any object if that cannot be said.

    with_schema: whether the provider takes a schema. native_tools: whether it calls tools in its own way, so that the
    object does not contain the calls.
    """
    fields = {
        label: field.annotation
        for label, field in signature.output_fields.items()
        if not (native_tools and field.annotation is dspy.ToolCalls)
    }
    schema = _schema(fields) if with_schema else None
    if schema is None:
        return _ANY_OBJECT
    described = {"name": "outputs", "schema": _strict_json_schema(schema), "strict": True}
    return {"type": "json_schema", "json_schema": described}


def _schema(fields: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of an object with these fields; None if a part of it may be anything, which none can say."""
    if dspy.ToolCalls in fields.values():
        return None
    try:
        inputs = [(label, "validation", pydantic.TypeAdapter(type)) for label, type in fields.items()]
        schemas, shared = pydantic.TypeAdapter.json_schemas(inputs)  # type: ignore[arg-type]
    except (ValueError, pydantic.PydanticUserError):  # a type of a module of the operator that has no schema
        return None
    properties = {label: schemas[label, "validation"] for label in fields}
    schema = {"type": "object", "properties": properties, "additionalProperties": False, **shared}
    return schema if _is_closed(schema) else None


def _is_closed(schema: Any) -> bool:
    """Return whether every part of a schema says what it contains, as providers demand."""
    if not isinstance(schema, dict) or not schema:
        return False
    if schema.get("type") == "object" and (not schema.get("properties") or schema.get("additionalProperties")):
        return False
    if schema.get("type") == "array" and "items" not in schema:
        return False
    parts = [*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()]
    parts += [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if "items" in schema:
        parts.append(schema["items"])
    is_named = schema.keys() & {"type", "$ref", "enum", "const", "anyOf", "oneOf", "allOf", "properties"}
    return bool(is_named) and all(map(_is_closed, parts))
