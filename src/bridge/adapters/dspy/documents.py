"""Programs as documents: what `module.save("x.json")` of DSPy writes, with the program's definition in its metadata.

DSPy can load such a document into an equal module, and ignores the definition. A document that DSPy wrote has none: it
can be loaded into a program that exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import dspy
import msgspec
from dspy.utils.saving import get_dependency_versions

from bridge import errors
from bridge.adapters.dspy import learning
from bridge.adapters.dspy.format_choice import FormatChoice, read_choice
from bridge.adapters.dspy.modules import module_type
from bridge.adapters.dspy.pipelines.plan import plan
from bridge.adapters.dspy.pipelines.stages import PIPELINE, stages_of
from bridge.adapters.dspy.prepared import prepared
from bridge.adapters.dspy.prompt_fields import label_of
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.state import Definition, Learned, Program
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.tools.checks import check_tools
from bridge.adapters.dspy.values.checks import check_of
from bridge.records import EncodedValue

AnyStruct = TypeVar("AnyStruct", bound=msgspec.Struct)

VERSION = 1  # of the definition in a document


class _Definition(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A program's definition as a document has it."""

    version: int
    program_type: str
    signature: Any
    tools: list[Tool] = []
    max_iters: int | None = None
    options: dict[str, Any] = {}
    adapter: FormatChoice | None = None


class _Metadata(msgspec.Struct, forbid_unknown_fields=True):
    dependency_versions: dict[str, str] = {}
    bridge: _Definition | None = None


class _Field(msgspec.Struct, forbid_unknown_fields=True):
    prefix: str
    description: str


class _Signature(msgspec.Struct, forbid_unknown_fields=True):
    instructions: str
    fields: list[_Field]


class _Predictor(msgspec.Struct, forbid_unknown_fields=True):
    """The state of a predictor. Only its demos and its instructions are used."""

    demos: list[dict[str, Any]]
    signature: _Signature
    traces: list[Any] = []
    train: list[Any] = []
    lm: Any = None


class Loaded(msgspec.Struct):
    """What a document contains.

    learned: by predictor. ignored: the paths of what is not used. warnings: texts for the host.
    """

    learned: dict[str, Learned]
    ignored: list[str]
    warnings: list[str]


def document_of(program: Program) -> dict[str, Any]:
    """Return `program` as a document, which has no settings of models. Raises NotAllowed for one of the operator."""
    if program.is_registered:
        raise errors.NotAllowed(
            f"{program.id} was registered by the operator of the worker (--program): its code cannot be a document",
            program_id=program.id,
            registered=True,
        )
    module, definition = prepared(program).module, program.definition
    learned = learning.of(module)
    state = {name: _dumped(learned[name], each) for name, each in module.named_predictors()}
    if isinstance(module, dspy.Predict):  # whose state has no name
        state = state["self"]
    signature = definition.signature
    plain = signature.own_format.decode_args(msgspec.Raw(signature.data), Any, undecodable="replace")
    tools = [*definition.tools] if module_type(definition).takes_tools else []
    own = _Definition(
        VERSION,
        definition.program_type,
        plain,
        tools,
        definition.max_iters,
        definition.options,
        definition.adapter,
    )
    metadata = {"dependency_versions": get_dependency_versions(), "bridge": msgspec.to_builtins(own)}
    return {**state, "metadata": metadata}


def description_of(program: Program, include: Sequence[str]) -> dict[str, Any]:
    """Return what `program` has learned, as `get_program` returns it.

    include: "demos", "instructions" or both: of the main predictor, and of each in `predictors`. Fields have the host's
    names.
    """
    learned = learning.of(prepared(program).module)
    predictors = {}
    for predictor, each in learned.items():
        signature = None if program.is_registered else _signature_of(predictor, program)
        demos = [as_example(demo, signature) for demo in each.demos]
        facts = {"instructions": each.instructions, "demos": demos}
        predictors[predictor] = {name: facts[name] for name in include}
    main = None if program.is_registered else module_type(program.definition).main
    return {**predictors.get(main or "", {}), "predictors": predictors}


def as_example(demo: dict[str, Any], signature: Signature | None) -> dict[str, dict[str, Any]]:
    """Return a demo, whose values are by label, as a map of inputs and outputs by the host's names."""
    names = {field.label: field.name for field in (*signature.inputs, *signature.outputs)} if signature else {}
    inputs = {field.label for field in signature.inputs} if signature else set()
    return {
        side: {names.get(label, label): value for label, value in demo.items() if (label in inputs) is is_input}
        for side, is_input in (("inputs", True), ("outputs", False))
    }


def definition_of(document: Any, path: str) -> Definition | None:
    """Return the definition in the document at `path` of the args, None if DSPy wrote it. Raises InvalidArgs."""
    own = _metadata(document, path).bridge
    if own is None:
        return None
    at = f"{path}.metadata.bridge"
    if own.version != VERSION:
        raise errors.InvalidArgs(
            f"{at}.version: {errors.shown(own.version)} is not known: this worker reads version {VERSION}",
            path=f"{at}.version",
            expected=VERSION,
        )
    try:
        signature = msgspec.json.encode(own.signature)
    except (TypeError, ValueError) as error:  # of a value that JSON lacks
        raise errors.InvalidArgs(f"{at}.signature: {error}", path=f"{at}.signature") from None
    definition = Definition(
        EncodedValue(signature, "json"),
        own.program_type,
        tools=tuple(own.tools),
        max_iters=own.max_iters,
        options=own.options,
        adapter=read_choice(own.adapter, f"{at}.adapter"),
    )
    tools = {f"{at}.tools": own.tools}
    if own.program_type == PIPELINE:
        stages = enumerate(stages_of(definition, f"{at}.options"))
        tools |= {f"{at}.options.stages[{index}].tools": stage.tools for index, stage in stages}
    for where, each in tools.items():
        check_tools(each, where)
    return definition


def read(document: Any, program: Program, path: str) -> Loaded:
    """Return what the document at `path` of the args contains for `program`, which must be without learned state.

    Raises InvalidArgs if it is not the document of a program with that signature and of that type.
    """
    metadata = _metadata(document, path)
    module = prepared(program).module
    loaded = Loaded({}, [], _differences(metadata.dependency_versions, path))
    parts = {name: value for name, value in document.items() if name != "metadata"}
    if isinstance(module, dspy.Predict):
        parts = {"self": parts}
    predictors = dict(module.named_predictors())
    for name in (*predictors, *parts):
        if name not in parts or name not in predictors:
            problem = "is missing" if name in predictors else "is unknown"
            raise errors.InvalidArgs(
                f"{path}: the predictor {name} {problem}; this program has {', '.join(predictors)}",
                path=f"{path}.{name}",
                expected=[*predictors],
            )
    for name, predictor in predictors.items():
        at = path if name == "self" else f"{path}.{name}"
        part = _converted(parts[name], _Predictor, at)
        _check_fields(part.signature.fields, predictor.signature, f"{at}.signature.fields")
        signature = _signature_of(name, program)
        demos = _demos(part.demos, predictor.signature, signature, f"{at}.demos", loaded.ignored)
        loaded.learned[name] = Learned(part.signature.instructions, demos)
        loaded.ignored += [f"{at}.{each}" for each in ("traces", "train", "lm") if getattr(part, each)]
    kind = module_type(program.definition)
    if kind.needs_demos and not loaded.learned[kind.main or ""].demos:
        raise errors.InvalidArgs(f"{path}: {program.definition.program_type} needs demos", path=f"{path}.demos")
    return loaded


def _signature_of(predictor: str, program: Program) -> Signature:
    """Return the signature of the program that has a predictor: in a pipeline, that of its stage."""
    if program.definition.program_type != PIPELINE:
        return program.signature
    name, _, rest = predictor.partition(".")
    steps = plan(program.definition, program.signature).steps
    return _signature_of(rest, next(step.program for step in steps if step.name == name))


def _dumped(learned: Learned, predictor: Any) -> dict[str, Any]:
    return {
        "traces": [],
        "train": [],
        "demos": [*learned.demos],
        "signature": {"instructions": learned.instructions, "fields": _fields(predictor.signature)},
        "lm": None,
    }


def _fields(signature: Any) -> list[dict[str, str]]:
    """Return the fields as DSPy would write them if it had the labels as names."""
    fields = []
    for name, field in signature.fields.items():
        label = label_of(name, field)
        extra = field.json_schema_extra
        prefix = extra["prefix"] if label == name else f"{dspy.infer_prefix(label)}:"
        fields.append({"prefix": prefix, "description": extra["desc"]})
    return fields


def _check_fields(given: list[_Field], signature: Any, path: str) -> None:
    """Raise InvalidArgs unless a saved signature has the fields of `signature`: their number, and a text of each."""
    own = _fields(signature)
    labels = [label_of(name, field) for name, field in signature.fields.items()]
    if len(given) != len(own):
        raise errors.InvalidArgs(
            f"{path}: {len(given)} fields, but the program has {len(own)}: {', '.join(labels)}",
            path=path,
            expected=labels,
        )
    for index, (each, field, label) in enumerate(zip(given, own, labels, strict=True)):
        # Optimizers may replace one of the texts.
        if each.prefix != field["prefix"] and each.description not in (field["description"], f"${{{label}}}"):
            raise errors.InvalidArgs(
                f"{path}[{index}]: {each.prefix!r} is not the program's field {label}",
                path=f"{path}[{index}]",
                expected=label,
            )


def _demos(
    demos: list[dict[str, Any]], fields: Any, signature: Signature, path: str, ignored: list[str]
) -> tuple[dict[str, Any], ...]:
    """Return the demos of a predictor. Appends to `ignored` the paths of what is no field. Raises InvalidArgs."""
    checks = {field.label: check_of(field, signature) for field in (*signature.inputs, *signature.outputs)}
    labels = {label_of(name, field) for name, field in fields.fields.items()}
    found = []
    for index, demo in enumerate(demos):
        at = f"{path}[{index}]"
        for label, value in demo.items():
            if label in checks:
                checks[label].value(value, at)
        # A demo may be a whole row of a trainset.
        ignored += [f"{at}.{key}" for key in demo if key not in labels and key != "augmented"]
        found.append({label: value for label, value in demo.items() if label in labels})
    return tuple(found)


def _metadata(document: Any, path: str) -> _Metadata:
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        raise errors.InvalidArgs(
            f"{path}: not a program: expected a map with metadata, as export_program returns or DSPy's save writes",
            path=path,
            expected="document",
        )
    return _converted(document["metadata"], _Metadata, f"{path}.metadata")


def _converted(value: Any, kind: type[AnyStruct], path: str) -> AnyStruct:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        at = path + where.rstrip("`")
        raise errors.InvalidArgs(f"{at}: {reason}", path=at) from None


def _differences(saved: dict[str, str], path: str) -> list[str]:
    """Return a warning if another version of DSPy wrote a document. Raises InvalidArgs for another major version."""
    version, own = saved.get("dspy"), dspy.__version__
    if version is None or version == own:
        return []
    if version.partition(".")[0] != own.partition(".")[0]:
        raise errors.InvalidArgs(
            f"{path}: saved with DSPy {version[:50]}, which this worker's DSPy {own} cannot read",
            path=f"{path}.metadata.dependency_versions.dspy",
            expected=own,
        )
    return [f"saved with DSPy {version[:50]}; this worker has {own}"]
