"""The stages of a pipeline as hosts send them and as its definition stores them: complete, without other programs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import msgspec

from bridge import errors
from bridge.adapters.dspy.modules import MODULES, RETRIEVE
from bridge.adapters.dspy.modules.checks import check_options, unknown_type
from bridge.adapters.dspy.modules.options import Options
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.state import Definition, Learned, Program
from bridge.adapters.dspy.tools import Tool
from bridge.records import EncodedValue
from bridge.wire.codec import by_name

PIPELINE = "pipeline"  # the program type
MOST_STAGES = 32  # with those of stages that are pipelines
_SEARCH = {"inputs": [{"name": "query"}], "outputs": [{"name": "passages", "type": "list<string>"}]}
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)
# Attributes of a dspy.Module, which has its parts as attributes, too.
_TAKEN = frozenset(
    {
        *("acall", "aforward", "batch", "callbacks", "deepcopy", "dump_state", "forward", "get_lm", "history"),
        *("inspect_history", "load", "load_state", "map_named_predictors", "named_parameters", "named_predictors"),
        *("named_sub_modules", "parameters", "predictors", "reset_copy", "save", "set_lm"),
    }
)


class GivenStage(Options, kw_only=True, forbid_unknown_fields=True):
    """A stage as a host sends it: a program of the session, the definition of a new one, or the search of an index.

    program: the id of the program, which is copied. signature, program_type, and what the type takes: as in
    create_program; with an `index` alone, the input is `query` and the output `passages`. inputs: where each input
    comes from: the name of an input of the pipeline, or STAGE.OUTPUT.
    """

    name: str | None = None
    program: str | None = None
    signature: Any = None
    program_type: str | None = None
    inputs: dict[str, str] = {}  # noqa: RUF012  # msgspec copies it


class Stage(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A stage as a definition stores it."""

    name: Annotated[str, msgspec.Meta(pattern=f"^{_NAME.pattern}$")]
    program_type: str
    signature: Any
    inputs: dict[str, str] = {}
    tools: list[Tool] = []
    max_iters: int | None = None
    options: dict[str, Any] = {}

    def program(self, learned: dict[str, Learned]) -> Program:
        """Return the program of this stage. learned: of the pipeline, by predictors with the stage in their names."""
        own = {
            "self" if name == self.name else name.removeprefix(f"{self.name}."): each
            for name, each in learned.items()
            if name == self.name or name.startswith(f"{self.name}.")
        }
        signature = EncodedValue(msgspec.json.encode(self.signature), "json")
        tools = tuple(self.tools)
        definition = Definition(
            signature, self.program_type, tools=tools, max_iters=self.max_iters, options=self.options, learned=own
        )
        return Program(self.name, definition)


class Resolved(NamedTuple):
    """The stages of a pipeline, as data for its definition, and what their programs have learned."""

    stages: list[dict[str, Any]]
    learned: dict[str, Learned]


def resolve(
    given: list[Any] | dict[str, Any],
    find: Callable[[str, str], Program],
    tools: dict[str, Tool],
    path: str = "args.stages",
) -> Resolved:
    """Return the stages that a host has sent at `path` of the args, with the programs that they name.

    find(id, path): returns a program of the session, or raises an error. tools: of the session. Raises InvalidArgs.
    """
    rows = [*given.items()] if isinstance(given, dict) else [(None, row) for row in given]
    if not 1 <= len(rows) <= MOST_STAGES:
        raise _wrong(path, f"a pipeline has 1 to {MOST_STAGES} stages")
    resolved = Resolved([], {})
    for index, (name, row) in enumerate(rows):
        at = f"{path}[{index}]" if name is None else f"{path}.{name}"
        stage = _converted(row, GivenStage, at)
        if name is not None and stage.name not in (None, name):
            raise _wrong(f"{at}.name", f"{stage.name[:100]!r} is the stage {name[:100]!r}")
        name = _checked_name(name or stage.name, at, [each["name"] for each in resolved.stages])
        made, learned = _copied(stage, find, at) if stage.program is not None else (_defined(stage, tools, at), {})
        made = msgspec.structs.replace(made, name=name, inputs=stage.inputs)
        _check_signature(made, at)
        resolved.stages.append(msgspec.to_builtins(made))
        resolved.learned.update({name if each == "self" else f"{name}.{each}": what for each, what in learned.items()})
    return resolved


def stages_of(definition: Definition, path: str) -> list[Stage]:
    """Return the stages of a pipeline. Raises InvalidArgs if the definition, at `path` of the args, is wrong."""
    made = _read(definition.options.get("stages"), path)
    _check_count(made, path)
    return made


def _read(stages: Any, path: str) -> list[Stage]:
    made: list[Stage] = _converted(stages or [], list[Stage], f"{path}.stages")
    for index, stage in enumerate(made):
        _checked_name(stage.name, f"{path}.stages[{index}]", [each.name for each in made[:index]])
        _check_signature(stage, f"{path}.stages[{index}]")
    return made


def _check_signature(stage: Stage, path: str) -> None:
    """Raise InvalidArgs for a signature with a value that JSON lacks."""
    try:
        msgspec.json.encode(stage.signature)
    except (TypeError, ValueError) as error:
        raise _wrong(f"{path}.signature", str(error)) from None


def _check_count(stages: list[Stage], path: str, others: int = 0) -> int:
    """Return how many stages there are, with those of stages and the `others`. Raises InvalidArgs for too many."""
    count = others + len(stages)
    if not stages or count > MOST_STAGES:
        raise _wrong(f"{path}.stages", f"a pipeline has 1 to {MOST_STAGES} stages, with those of its stages")
    for stage in stages:
        if stage.program_type == PIPELINE:
            at = f"{path}.stages.{stage.name}"
            count = _check_count(_read(stage.options.get("stages"), at), at, count)
    return count


def _copied(stage: GivenStage, find: Callable[[str, str], Program], path: str) -> tuple[Stage, dict[str, Learned]]:
    assert stage.program is not None
    others = [*stage.given(), *(name for name in ("signature", "program_type") if getattr(stage, name) is not None)]
    if others:
        raise _wrong(f"{path}.{others[0]}", "not for a stage that names a program")
    program = find(stage.program, f"{path}.program")
    if program.is_registered:
        raise _wrong(f"{path}.program", f"{program.id} is a program of the operator, which cannot be copied")
    own = program.definition
    signature = own.signature.own_format.decode_args(msgspec.Raw(own.signature.data), Any, undecodable="replace")
    return (
        Stage("x", own.program_type, signature, {}, [*own.tools], own.max_iters, own.options),
        own.learned,
    )


def _defined(stage: GivenStage, tools: dict[str, Tool], path: str) -> Stage:
    if stage.index is not None and stage.program_type is None:
        stage.program_type, stage.signature = RETRIEVE, stage.signature or _SEARCH
    if stage.signature is None:
        raise _wrong(path, "a stage names a program, or has a signature")
    kind = stage.program_type or "predict"
    if kind not in MODULES:
        raise unknown_type(kind, f"{path}.program_type")
    if kind == PIPELINE or MODULES[kind].needs_demos:
        wanted = "has stages of its own" if kind == PIPELINE else "needs demos"
        raise _wrong(f"{path}.program_type", f"{kind} {wanted}: create a program of this type, and name it here")
    given = stage.given()
    options = {name: value for name, value in given.items() if name not in ("tools", "max_iters")}
    empty = Definition(EncodedValue(b"", "json"), kind, options=options)
    check_options(given, empty, path)
    unknown = [name for name in stage.tools or () if name not in tools]
    if unknown:
        raise _wrong(f"{path}.tools", f"no tool {', '.join(unknown)} is registered in this session")
    chosen = [tools[name] for name in (tools if stage.tools is None else stage.tools)]
    return Stage("x", kind, stage.signature, {}, chosen, stage.max_iters, options)


def signature_of(stage: Stage, path: str) -> Signature:
    """Return the signature of a stage. Raises InvalidArgs. path: of the signature in the args."""
    format = by_name("json")
    assert format is not None
    return Signature.parse(msgspec.Raw(msgspec.json.encode(stage.signature)), format, path)


def _checked_name(name: str | None, path: str, others: list[str]) -> str:
    if name is None:
        raise _wrong(path, "a stage needs a name")
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise _wrong(f"{path}.name", f"{name[:100]!r} cannot be the name of a stage: letters, digits and _")
    if name in others:
        raise _wrong(f"{path}.name", f"a second stage {name!r}")
    return name


def _converted(value: Any, kind: Any, path: str) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        raise _wrong(path + where.rstrip("`"), reason) from None


def _wrong(path: str, reason: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {reason}", path=path)
