"""What a module of the operator declares: its inputs, and its outputs if it has a signature."""

from __future__ import annotations

import inspect
import typing
from typing import Any, NamedTuple

import dspy
from dspy.adapters.utils import annotation_allows_none, get_annotation_name
from dspy.utils.constants import IS_TYPE_UNDEFINED


class Declared(NamedTuple):
    """An input or an output. is_required: whether a run needs it."""

    type: Any
    is_required: bool = True
    description: str = ""

    @property
    def type_name(self) -> str:
        name: str = "any" if self.type is Any else get_annotation_name(self.type)
        return name


class Declaration(NamedTuple):
    """What a module declares. is_open: whether it takes other inputs, too."""

    name: str
    description: str
    inputs: dict[str, Declared]
    outputs: dict[str, Declared]
    is_open: bool

    def as_signature(self) -> dict[str, Any]:
        """Return this in the form in which hosts write signatures."""
        sides = {"inputs": self.inputs, "outputs": self.outputs}
        return {"name": self.name, "description": self.description} | {
            side: [
                {"name": name, "type": field.type_name, "description": field.description}
                for name, field in fields.items()
            ]
            for side, fields in sides.items()
        }


def declaration_of(module: dspy.Module) -> Declaration:
    """Return what `module` declares by the parameters of its forward, and by its attribute `signature`.

    If forward takes only **kwargs and there is no signature, the only module that it contains declares it.
    """
    inputs, is_open = _parameters(module)
    signature: Any = getattr(module, "signature", None)
    if isinstance(signature, str):
        signature = dspy.ensure_signature(signature)
    if not _is_signature(signature):
        name, description = type(module).__name__, (vars(type(module)).get("__doc__") or "").strip().partition("\n")[0]
        contained = [each for each in vars(module).values() if isinstance(each, dspy.Module)]
        if is_open and not inputs and len(contained) == 1:
            return declaration_of(contained[0])
        return Declaration(name, description, inputs, {}, is_open)
    fields = _fields(signature.input_fields)
    if is_open:
        inputs = {**fields, **inputs}
    for field in fields.keys() & inputs.keys():
        is_required = inputs[field].is_required
        inputs[field] = fields[field]._replace(is_required=is_required and fields[field].is_required)
    return Declaration(signature.__name__, signature.instructions, inputs, _fields(signature.output_fields), False)


def _is_signature(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, dspy.Signature)


def _parameters(module: dspy.Module) -> tuple[dict[str, Declared], bool]:
    """Return the parameters of the module's forward, and whether it takes any others, too."""
    # Of the class: DSPy logs a warning when code asks an instance for its forward.
    forward = type(module).forward
    _, *parameters = inspect.signature(forward).parameters.values()
    try:
        types = typing.get_type_hints(forward, include_extras=True)
    except Exception:  # an annotation may name what is only imported for the type checker
        types = {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    inputs = {
        each.name: Declared(types.get(each.name, Any), each.default is inspect.Parameter.empty)
        for each in parameters
        if each.kind in named
    }
    return inputs, any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _fields(fields: dict[str, Any]) -> dict[str, Declared]:
    """Return the fields of a DSPy signature."""
    declared = {}
    for name, field in fields.items():
        is_typed = not field.json_schema_extra.get(IS_TYPE_UNDEFINED, False)
        description = field.json_schema_extra.get("desc", "")
        declared[name] = Declared(
            field.annotation if is_typed else Any,
            field.is_required() and not annotation_allows_none(field.annotation),
            "" if description == f"${{{name}}}" else description,
        )
    return declared
