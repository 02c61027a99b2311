"""What a module of the operator declares: its inputs, and its outputs if it has a signature."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, get_origin, get_type_hints

import dspy
from dspy.adapters.utils import annotation_allows_none, get_annotation_name
from dspy.utils.constants import IS_TYPE_UNDEFINED

# Names that are never inputs: DSPy's modules take them as instructions, and some could send a key to another address.
RESERVED = frozenset(
    {"config", "demos", "instance", "lm", "new_signature", "prediction", "self", "signature", "_trace"}
)


class Declared(NamedTuple):
    """An input or an output. is_required: whether a run needs it."""

    type: Any
    is_required: bool = True
    description: str = ""

    @property
    def type_name(self) -> str:
        """Return the name of the type, as signatures and errors show it."""
        kind = self.type.__origin__ if get_origin(self.type) is Annotated else self.type
        name: str = "any" if kind is Any else get_annotation_name(kind)
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


def forward_of(module: dspy.Module) -> Any:
    """Return the module's forward, or None. DSPy would log a warning if it were looked up as usual."""
    try:
        return object.__getattribute__(module, "forward")
    except AttributeError:
        return None


def declaration_of(module: dspy.Module) -> Declaration:
    """Return what `module` declares by the parameters of its forward, and by its attribute `signature`.

    If forward takes only **kwargs and there is no signature, the only module that it contains declares it. Raises
    ValueError for a parameter that a host could not set: one without a default that is positional-only, or has the name
    of an argument of DSPy's modules.
    """
    found = _declared_by(module)
    for name in found.inputs.keys() & RESERVED:
        if found.inputs[name].is_required:
            raise ValueError(f"{name!r} is an argument of DSPy's own modules")
    return found._replace(inputs={name: each for name, each in found.inputs.items() if name not in RESERVED})


def _declared_by(module: dspy.Module) -> Declaration:
    inputs, is_open = _parameters(module)
    signature: Any = getattr(module, "signature", None)
    if isinstance(signature, str):
        signature = dspy.ensure_signature(signature)
    if not _is_signature(signature):
        name, description = type(module).__name__, (vars(type(module)).get("__doc__") or "").strip().partition("\n")[0]
        contained = [each for each in vars(module).values() if isinstance(each, dspy.Module)]
        if is_open and not inputs and len(contained) == 1:
            return _declared_by(contained[0])
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
    forward = forward_of(module)
    namespace = getattr(inspect.unwrap(forward), "__globals__", {})
    inputs, is_open = {}, False
    for each in inspect.signature(forward).parameters.values():
        if each.kind is each.VAR_KEYWORD:
            is_open = True
        elif each.kind is each.POSITIONAL_ONLY and each.default is each.empty:
            raise ValueError(f"the parameter {each.name!r} of forward is positional-only, but inputs have names")
        elif each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY):
            inputs[each.name] = Declared(_type(each, namespace), each.default is each.empty)
    return inputs, is_open


def _type(parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    """Return the annotated type, which allows null if that is the default; Any if the annotation cannot be read."""
    if parameter.annotation is parameter.empty:
        return Any
    annotated = SimpleNamespace(__annotations__={"value": parameter.annotation})
    try:
        kind = get_type_hints(annotated, namespace, include_extras=True)["value"]
        return kind | None if parameter.default is None else kind
    except Exception:  # it may name what is only imported for the type checker
        return Any


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
