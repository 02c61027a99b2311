"""The fields of a DSPy signature, and their labels, which are their names in prompts.

Labels are the host's names where possible, and the Python names that DSPy gets are the labels, unless they would clash
with its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dspy
import msgspec

from bridge.adapters.dspy.native_types import annotation_of, constraints_of
from bridge.adapters.dspy.signatures import Field, Signature
from bridge.adapters.dspy.values.checks import is_accepted
from bridge.adapters.dspy.values.conversion import convert, exact_numbers

_LABEL = "label"  # the key of a label in the metadata of a DSPy field
_TYPE = "type of values"  # the key of the type with its constraints


def dspy_signature(signature: Signature) -> Any:
    """Return the DSPy class of `signature`."""
    fields = {}
    for make, side in ((dspy.InputField, signature.inputs), (dspy.OutputField, signature.outputs)):
        for field in side:
            default = {"default": _default(field)} if _has_default(field) else {}
            made = make(desc=_description(field), **default)
            made.json_schema_extra |= {_LABEL: field.label, _TYPE: field.type}
            if constraints := constraints_of(field):
                made.json_schema_extra["constraints"] = constraints
            if field.prefix:
                made.json_schema_extra["prefix"] = field.prefix
            fields[field.python_name] = (annotation_of(field), made)
    return dspy.make_signature(fields, signature.description or _instructions(signature))


def _has_default(field: Field) -> bool:
    """Return whether a reply may lack the field. DSPy knows that only of types that are unions with null."""
    return bool(field.default) or (bool(field.schema) and is_accepted(None, field.type))


def _default(field: Field) -> Any:
    return convert(exact_numbers(msgspec.json.decode(field.default)), field.type) if field.default else None


def _instructions(signature: Signature) -> str:
    """Return the instructions that DSPy would write for a signature that has none."""
    inputs, outputs = (
        ", ".join(f"`{field.label}`" for field in side) for side in (signature.inputs, signature.outputs)
    )
    return f"Given the fields {inputs}, produce the fields {outputs}."


def _description(field: Field) -> str:
    """Return the description of a field in prompts: with the host's name of it if that is not the label."""
    if field.label == field.name:
        return field.description
    name = " ".join(field.name.split())
    return f"{name}: {field.description}" if field.description else name


class LabelledSignature:
    """A DSPy signature with its fields by label, for the functions of DSPy that print one."""

    def __init__(self, signature: Any) -> None:
        self.instructions = signature.instructions
        self.input_fields = by_label(signature.input_fields)
        self.output_fields = by_label(signature.output_fields)


def label_of(name: str, field: Any) -> str:
    """Return the label of the DSPy field `name`; a field that DSPy added has its name as label."""
    label: str = field.json_schema_extra.get(_LABEL, name)
    return label


def type_of(field: Any) -> Any:
    """Return the type as which values of a DSPy field are read."""
    return field.json_schema_extra.get(_TYPE, field.annotation)


def by_label(fields: dict[str, Any]) -> dict[str, Any]:
    """Return DSPy fields by their labels."""
    return {label_of(name, field): field for name, field in fields.items()}


class Layout:
    """What prompts and replies need to know of a DSPy signature.

    instructions: of the signature. inputs: the name, the label and the field of each input. outputs: the name and the
    type of each output, by label. is_plain: whether all fields are texts in messages: none is a conversation, and none
    is of the types `native`, for which requests or responses have a place. system, requirements: the texts of its
    prompts, once they have been written. response_formats: what a provider is asked to write, by what it can.
    extractor: what finds the outputs in a text: the name of the text and a signature, once it has been made.
    """

    def __init__(self, signature: Any, native: Sequence[Any]) -> None:
        inputs, outputs = signature.input_fields, signature.output_fields
        self.instructions = signature.__doc__
        self.inputs = [(name, label_of(name, field), field) for name, field in inputs.items()]
        self.outputs = {label_of(name, field): (name, type_of(field)) for name, field in outputs.items()}
        types = [field.annotation for field in (*inputs.values(), *outputs.values())]
        self.is_plain = not any(type in (dspy.History, dspy.ToolCalls, *native) for type in types)
        self.system: str | None = None
        self.requirements: str | None = None
        self.response_formats: dict[Any, dict[str, Any]] = {}
        self.extractor: tuple[str, Any] | None = None
