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
from bridge.adapters.dspy import field_types
from bridge.adapters.dspy.schemas.parts import default_problem
from bridge.adapters.dspy.values.scalars import name_of
from bridge.adapters.dspy.values.text_form import without_text_form
from bridge.adapters.type_names import History
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
    json_schema: dict[str, Any] | bool | None = None
    constraints: dict[str, Any] | None = None
    default: Any = msgspec.UNSET
    prefix: str | None = None


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
    gives the label a special meaning. type_name: as the host wrote it, or that of the schema. schema: the JSON Schema,
    with the constraints, as text with sorted keys, or empty. default: as JSON text, or empty. prefix: what saved states
    of DSPy and its optimizers know as the field's prefix.
    """

    name: str
    label: str
    python_name: str
    type_name: str
    description: str
    schema: str = ""
    default: str = ""
    prefix: str = ""

    @property
    def type(self) -> Any:
        return field_types.field_type(self.type_name, self.schema)

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
        texts = [part for f in fields for part in (f.name, f.type_name, f.description, f.schema, f.default, f.prefix)]
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
            _field(*named, label, index, is_input=index < len(inputs))
            for index, (named, label) in enumerate(zip((*inputs, *outputs), labels, strict=True))
        ]
        histories = [field.name for field in fields if field.type is History]
        if len(histories) > 1:
            path = f"{path}.inputs"
            raise InvalidArgs(f"{path}: more than one history: {', '.join(histories)}", path=path)
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


def _field(name: str, path: str, definition: FieldDefinition, label: str, index: int, *, is_input: bool) -> Field:
    schema, type_name = definition.json_schema, definition.type
    place = f"{path}.type" if schema is None else f"{path}.json_schema"
    type = field_types.checked_type(type_name or "string", f"{path}.type")
    field_types.check_place(type, place, is_input=is_input)
    if definition.constraints:
        if schema is not None:
            where = f"{path}.constraints"
            raise InvalidArgs(f"{where}: cannot be used with json_schema, which has constraints of its own", path=where)
        schema = field_types.with_constraints(type, definition.constraints, f"{path}.constraints")
    text = ""
    if schema is not None:
        text, described = field_types.checked_schema(schema, place)
        if type_name is not None and not definition.constraints:
            field_types.check_same(type, described, f"{path}.type")
        type = described
    default = definition.default
    if default is msgspec.UNSET and isinstance(definition.json_schema, dict):
        default = definition.json_schema.get("default", msgspec.UNSET)
    return Field(
        name,
        label,
        _python_name(label, index),
        type_name or name_of(type) if text else type_name or "string",
        definition.description or "",
        text,
        _default(default, type, f"{path}.default"),
        definition.prefix or "",
    )


def _default(value: Any, type: Any, path: str) -> str:
    """Return the default of a field as JSON text, or "" if it has none."""
    if value is msgspec.UNSET:
        return ""
    if type is History or field_types.media_of(type) is not None:
        raise InvalidArgs(f"{path}: fields of this type cannot have a default", path=path)
    unreadable = without_text_form(value, path)
    problem = f"{unreadable[1]} has no text form" if unreadable else default_problem(value, type)
    if problem is not None:
        raise InvalidArgs(f"{path}: {problem}", path=path)
    return msgspec.json.encode(value).decode()


def _python_name(label: str, index: int) -> str:
    is_usual = (
        _PYTHON_NAME.fullmatch(label)
        and label not in _SPECIAL
        and not _SPECIAL_FORMS.fullmatch(label)
        and not keyword.iskeyword(label)
    )
    return label if is_usual else f"{_STEM}{index}"


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
