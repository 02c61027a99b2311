"""Reads and checks the signatures that hosts send, in two forms, and names their fields for DSPy and for prompts.

DSPy's own parser is not used: it imports modules whose names it finds in a signature.
"""

from __future__ import annotations

import keyword
import re
import secrets
from typing import Any

import msgspec

from bridge.adapter import Ignored
from bridge.adapters.type_names import TypeNameError, parse_type
from bridge.errors import InvalidArgs
from bridge.wire.codec import Format

# Sections that DSPy's modules and chat format add to a prompt.
_SECTIONS = frozenset(
    {
        *("completed", "reasoning"),
        *("trajectory", "next_thought", "next_tool_name", "next_tool_args"),
    }
)
_LABEL = re.compile(r"\w{1,64}")
# Labels that cannot be Python names in DSPy: its classes and pydantic's have attributes of these names, its modules
# have arguments or further fields of these names, and it hides what begins with dspy_.
_SPECIAL = frozenset(
    {
        *(
            "append",
            "append_instructions",
            "completions",
            "construct",
            "copy",
            "delete",
            "dict",
            "dump_state",
            "equals",
        ),
        *("fields", "from_completions", "from_orm", "get", "get_lm_usage", "input_fields", "inputs", "insert"),
        *("instructions", "items", "json", "keys", "labels", "load_state", "mro", "output_fields", "parse_file"),
        *("parse_obj", "parse_raw", "prepend", "register", "schema", "schema_json", "set_lm_usage", "signature"),
        *("toDict", "update_forward_refs", "validate", "values", "with_inputs", "with_instructions"),
        *("with_updated_fields", "without"),
        *("args", "augmented", "base", "callbacks", "config", "demos", "func", "instance", "interpreter_factory"),
        *("kwargs", "lm", "max_iters", "module", "new_signature", "prediction", "self", "stage", "tools", "trace"),
        *("hint_", "history", "rationale", "termination_reason"),
    }
)
_SPECIAL_FORMS = re.compile(r"(?:dspy_|model_|reasoning_attempt_|field_).*", re.ASCII)
_PYTHON_NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
# A generated Python name must not occur in any text: `Signature.with_labels` replaces it.
_STEM = f"field_{secrets.token_hex(4)}_"
MAX_FIELDS = 256


class FieldDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A field in the map form, in which the key is the name."""

    type: str | None = None
    description: str | None = None
    constraints: Ignored = None


class NamedDefinition(FieldDefinition, kw_only=True, forbid_unknown_fields=True):
    """A field in the list form."""

    name: str


Definitions = list[NamedDefinition] | dict[str, FieldDefinition]


class SignatureDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A signature as hosts send it. module and metadata are ignored."""

    inputs: Definitions
    outputs: Definitions
    name: str | None = None
    description: str | None = None
    module: Ignored = None
    metadata: Ignored = None


class Field(msgspec.Struct, frozen=True):
    """A field of a checked signature.

    name: the host's. label: the name in prompts. python_name: the name in DSPy: the label, or a generated one if DSPy
    gives the label a special meaning. type_name: as the host wrote it.
    """

    name: str
    label: str
    python_name: str
    type_name: str
    description: str

    @property
    def type(self) -> Any:
        return parse_type(self.type_name)

    @property
    def is_exact(self) -> bool:
        """Return whether the values contain decimals."""
        return "decimal" in self.type_name.lower()


class Signature(msgspec.Struct, frozen=True):
    """A checked signature. Equal ones can share a DSPy class."""

    name: str
    description: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]

    @property
    def size(self) -> int:
        """Return the number of characters that the host wrote."""
        fields = (*self.inputs, *self.outputs)
        texts = [part for f in fields for part in (f.name, f.type_name, f.description)]
        return sum(map(len, (self.name, self.description, *texts)))

    @classmethod
    def parse(cls, definition: msgspec.Raw, format: Format, path: str = "args.signature") -> Signature:
        """Return the signature sent at `path` of the args. Raises InvalidArgs with the path of what is wrong."""
        parsed = format.decode_args(definition, SignatureDefinition, path=path, undecodable="replace")
        inputs = _named(parsed.inputs, f"{path}.inputs")
        outputs = _named(parsed.outputs, f"{path}.outputs")
        if not outputs:
            path = f"{path}.outputs"
            raise InvalidArgs(f"{path}: at least one output is needed", path=path)
        labels = _labels([name for name, _, _ in (*inputs, *outputs)])
        fields = [
            _field(*named, label, index)
            for index, (named, label) in enumerate(zip((*inputs, *outputs), labels, strict=True))
        ]
        return cls(
            parsed.name or "Signature",
            parsed.description or "",
            tuple(fields[: len(inputs)]),
            tuple(fields[len(inputs) :]),
        )

    def with_labels(self, text: str) -> str:
        """Return a text that DSPy wrote with the labels of the fields it names."""
        for field in (*self.inputs, *self.outputs):
            text = text.replace(f"`{field.python_name}`", f"`{field.label}`")
        return text


def _named(definitions: Definitions, path: str) -> list[tuple[str, str, FieldDefinition]]:
    """Return (name, path, definition) of each field, in order. Raises InvalidArgs for a wrong name."""
    if len(definitions) > MAX_FIELDS:
        raise InvalidArgs(f"{path}: more than {MAX_FIELDS} fields", path=path)
    if isinstance(definitions, dict):
        named = [(name, f"{path}.{name}", entry) for name, entry in definitions.items()]
    else:
        named = [(entry.name, f"{path}[{i}]", entry) for i, entry in enumerate(definitions)]
    names: set[str] = set()
    for name, at, _ in named:
        if not name.strip() or name in names:
            reason = "a field needs a name" if name not in names else f"second field {name!r}"
            raise InvalidArgs(f"{at}: {reason}", path=at)
        names.add(name)
    return named


def _field(name: str, path: str, definition: FieldDefinition, label: str, index: int) -> Field:
    type_name = _checked(definition.type or "string", f"{path}.type")
    return Field(name, label, _python_name(label, index), type_name, definition.description or "")


def _python_name(label: str, index: int) -> str:
    is_usual = (
        _PYTHON_NAME.fullmatch(label)
        and label not in _SPECIAL
        and not _SPECIAL_FORMS.fullmatch(label)
        and not keyword.iskeyword(label)
    )
    return label if is_usual else f"{_STEM}{index}"


def _checked(type_name: str, path: str) -> str:
    try:
        parse_type(type_name)
    except TypeNameError as error:
        raise InvalidArgs(f"{path}: {error}", path=path, expected="a type name") from None
    return type_name


def _labels(names: list[str]) -> list[str]:
    """Return a label for each field: its name if that is a word and unique in a prompt, else a similar one."""
    labels: dict[int, str] = {}
    taken = set(_SECTIONS)
    for index, name in enumerate(names):
        if _LABEL.fullmatch(name) and name not in taken:
            labels[index] = name
            taken.add(name)
    for index, name in enumerate(names):
        if index not in labels:
            labels[index] = _other_label(name, taken)
            taken.add(labels[index])
    return [labels[index] for index in range(len(names))]


def _other_label(name: str, taken: set[str]) -> str:
    word = re.sub(r"\W+", "_", name).strip("_")[:50]
    stem = f"field_{word}"
    label = stem if not word or word in taken else word
    count = 1
    while label in taken:
        count += 1
        label = f"{stem}_{count}"
    return label
