"""Signatures on the wire: both forms, checked, with names that DSPy can use and types honoured.

Never DSPy's string parser: it imports modules by the names it meets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

from bridge.adapter import Ignored
from bridge.adapters.dspy.types import TypeNameError, parse_type
from bridge.codec import Format
from bridge.errors import InvalidArgs

# Control arguments of DSPy's modules, and the fields that its modules and formats add themselves.
_CONTROL = frozenset(
    re.findall(
        r"\w+",
        """
    args config kwargs lm demos module prediction max_iters new_signature n self reasoning
    trajectory history tools termination_reason completed observation next_thought
    next_tool_name next_tool_args
    """,
    )
)
_SAFE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
MAX_FIELDS = 256


class FieldDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A field of the map form, where the key is the name."""

    type: str | None = None
    description: str | None = None
    constraints: Ignored = None


class NamedDefinition(FieldDefinition, kw_only=True, forbid_unknown_fields=True):
    """A field of the list form."""

    name: str


Definitions = list[NamedDefinition] | dict[str, FieldDefinition]


class SignatureDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """{"name", "description", "inputs", "outputs"}; module and metadata are the host's own."""

    inputs: Definitions
    outputs: Definitions
    name: str | None = None
    description: str | None = None
    module: Ignored = None
    metadata: Ignored = None


class Field(msgspec.Struct, frozen=True):
    """name: the host's. safe_name: DSPy's. type_name: as the host wrote it."""

    name: str
    safe_name: str
    type_name: str
    description: str

    @property
    def type(self) -> Any:
        return parse_type(self.type_name)

    @property
    def is_exact(self) -> bool:
        """Whether its values hold decimals."""
        return "decimal" in self.type_name.lower()


class Signature(msgspec.Struct, frozen=True):
    """A checked signature; equal ones are one DSPy class."""

    name: str
    description: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    @classmethod
    def parse(cls, definition: msgspec.Raw, format: Format) -> Signature:
        """From the wire. Raises InvalidArgs with the path of what is wrong."""
        path = "args.signature"
        parsed = format.decode_args(
            definition, SignatureDefinition, path=path, undecodable="replace"
        )
        taken: set[str] = set()
        inputs = _fields(parsed.inputs, f"{path}.inputs", taken)
        outputs = _fields(parsed.outputs, f"{path}.outputs", taken)
        if not outputs:
            path = f"{path}.outputs"
            raise InvalidArgs(f"{path}: at least one output is needed", path=path)
        return cls(parsed.name or "Signature", parsed.description or "", inputs, outputs)


def _fields(definitions: Definitions, path: str, taken: set[str]) -> tuple[Field, ...]:
    if len(definitions) > MAX_FIELDS:
        raise InvalidArgs(f"{path}: more than {MAX_FIELDS} fields", path=path)
    names: set[str] = set()
    fields = []
    for name, at, definition in _named(definitions, path):
        if not name.strip() or name in names:
            reason = "a field needs a name" if name not in names else f"second field {name!r}"
            raise InvalidArgs(f"{at}: {reason}", path=at)
        names.add(name)
        type_name = _checked(definition.type or "string", f"{at}.type")
        safe = _safe_name(name, taken)
        fields.append(Field(name, safe, type_name, definition.description or ""))
    return tuple(fields)


def _named(definitions: Definitions, path: str) -> Iterable[tuple[str, str, FieldDefinition]]:
    """(name, path, definition) of each field, in order."""
    if isinstance(definitions, dict):
        return [(name, f"{path}.{name}", entry) for name, entry in definitions.items()]
    return [(entry.name, f"{path}[{index}]", entry) for index, entry in enumerate(definitions)]


def _checked(type_name: str, path: str) -> str:
    try:
        parse_type(type_name)
    except TypeNameError as error:
        raise InvalidArgs(f"{path}: {error}", path=path, expected="a type name") from None
    return type_name


@cache
def _taken() -> frozenset[str]:
    """Names that no field can have: a field must not shadow an attribute of DSPy's classes."""
    import dspy

    classes = (dspy.Signature, type(dspy.Signature), dspy.Prediction, dspy.Predict)
    return _CONTROL.union(*map(dir, classes))


def _safe_name(name: str, taken: set[str]) -> str:
    """A name for DSPy, adding it to `taken`: inputs and outputs must not share one either."""
    safe = name if _SAFE.fullmatch(name) else re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
    if not _SAFE.fullmatch(safe):
        safe = f"field_{safe}"[:56]
    stem, count = safe, 1
    while safe in taken or safe in _taken() or safe.startswith("model_"):
        count += 1
        safe = f"field_{stem}"[:56] if count == 2 else f"field_{stem}"[:56] + f"_{count}"
    taken.add(safe)
    return safe
