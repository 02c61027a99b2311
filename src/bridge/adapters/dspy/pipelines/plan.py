"""The plan of a pipeline: where each input of each stage comes from, and in which order the stages run."""

from __future__ import annotations

from typing import NamedTuple

from bridge import errors
from bridge.adapters.dspy.modules.checks import check
from bridge.adapters.dspy.pipelines.stages import PIPELINE, Stage, signature_of, stages_of
from bridge.adapters.dspy.pipelines.types import accepts
from bridge.adapters.dspy.signatures import Field, Signature
from bridge.adapters.dspy.state import Definition, Program
from bridge.adapters.dspy.values.checks import check_of


class Source(NamedTuple):
    """Where a value comes from: an output of a stage, or an input of the pipeline (stage: None)."""

    stage: str | None
    field: Field

    def __str__(self) -> str:
        return self.field.name if self.stage is None else f"{self.stage}.{self.field.name}"


class Step(NamedTuple):
    """A stage in its place. inputs: where each input comes from, by name; those that are missing are null."""

    name: str
    program: Program
    inputs: dict[str, Source]


class Plan(NamedTuple):
    """The steps of a pipeline in order, and where each of its outputs comes from, by name."""

    steps: list[Step]
    outputs: dict[str, Source]


def plan(definition: Definition, signature: Signature, path: str = "args") -> Plan:
    """Return the plan of a pipeline. path: of the definition in the args.

    Raises InvalidArgs for a stage that does not exist, a field that does not, a field without a source or with several,
    types that do not fit, stages that wait for each other, and what nothing uses.
    """
    stages = stages_of(definition, path)
    signatures = {}
    for stage in stages:
        at = f"{path}.stages.{stage.name}"
        program = stage.program(definition.learned)
        signatures[stage.name] = signature_of(stage, f"{at}.signature")
        check(program.definition, signatures[stage.name], at)
        if stage.program_type == PIPELINE:
            plan(program.definition, signatures[stage.name], at)
    wires = _Wires(signature, signatures)
    steps = {stage.name: _step(stage, definition, wires, f"{path}.stages.{stage.name}") for stage in stages}
    used = {source for step in steps.values() for source in step.inputs.values()}
    ordered = _ordered(steps, path)
    outputs = _outputs(definition, signature, wires, used, path)
    used |= {*outputs.values()}
    _check_use(signature, steps, used, path)
    return Plan(ordered, outputs)


class _Wires:
    """Finds the sources of values. inputs: of the pipeline, by name. outputs: of the stages, by stage and name."""

    def __init__(self, signature: Signature, signatures: dict[str, Signature]) -> None:
        self.inputs = {field.name: Source(None, field) for field in signature.inputs}
        self.signatures = signatures
        self.outputs = {
            stage: {field.name: Source(stage, field) for field in each.outputs} for stage, each in signatures.items()
        }

    def named(self, text: str, path: str) -> Source:
        """Return the source that `text` names. Raises InvalidArgs."""
        if text in self.inputs:
            return self.inputs[text]
        stage, _, name = text.partition(".")
        if stage not in self.outputs or not name:
            known = ", ".join([*self.inputs, *(f"{each}.…" for each in self.outputs)])
            raise _wrong(path, f"there is no input and no stage {text[:100]!r}; known: {known}")
        if name not in self.outputs[stage]:
            known = ", ".join(self.outputs[stage])
            raise _wrong(path, f"the stage {stage} has no output {name[:100]!r}; its outputs: {known}")
        return self.outputs[stage][name]

    def sources(self, name: str, reader: str | None) -> list[Source]:
        """Return the sources of the name `name`, without those of the stage `reader`."""
        own = [self.inputs[name]] if name in self.inputs and reader is not None else []
        return own + [each[name] for stage, each in self.outputs.items() if stage != reader and name in each]


def _step(stage: Stage, definition: Definition, wires: _Wires, path: str) -> Step:
    fields = {field.name: field for field in wires.signatures[stage.name].inputs}
    unknown = [name for name in stage.inputs if name not in fields]
    if unknown:
        raise _wrong(
            f"{path}.inputs.{unknown[0]}",
            f"the stage {stage.name} has no input {unknown[0][:100]!r}; its inputs: {', '.join(fields) or 'none'}",
        )
    inputs = {}
    for name, field in fields.items():
        at = f"{path}.inputs.{name}"
        source = _source(name, stage.inputs.get(name), wires.sources(name, stage.name), wires, at)
        is_needed = not field.default and not check_of(field, wires.signatures[stage.name]).accepts_none()
        if source is None and is_needed:
            raise _wrong(at, f"nothing has an output or input {name!r}: name a source")
        if source is not None:
            inputs[name] = _fitting(field, source, at)
    return Step(stage.name, stage.program(definition.learned), inputs)


def _outputs(
    definition: Definition, signature: Signature, wires: _Wires, used: set[Source], path: str
) -> dict[str, Source]:
    given = definition.options.get("outputs", {})
    names = [field.name for field in signature.outputs]
    for name in given:
        if name not in names:
            raise _wrong(f"{path}.outputs.{name}", f"not an output of the signature; its outputs: {', '.join(names)}")
    found = {}
    for field in signature.outputs:
        at = f"{path}.outputs.{field.name}"
        sources = wires.sources(field.name, None)
        ends = [each for each in sources if each not in used]
        source = _source(field.name, given.get(field.name), ends if len(ends) == 1 else sources, wires, at)
        if source is None:
            raise _wrong(at, f"no stage has an output {field.name!r}: name a source")
        found[field.name] = _fitting(field, source, at)
    return found


def _source(name: str, given: str | None, sources: list[Source], wires: _Wires, path: str) -> Source | None:
    """Return the source that is given, or else the only one of that name; None if there is none."""
    if given is not None:
        return wires.named(given, path)
    if len(sources) > 1:
        raise _wrong(path, f"{name!r} could be {' or '.join(map(str, sources))}: name one of them")
    return sources[0] if sources else None


def _fitting(field: Field, source: Source, path: str) -> Source:
    if not accepts(field, source.field):
        raise _wrong(path, f"{source} is of the type {source.field.type_name}, not {field.type_name}")
    return source


def _check_use(signature: Signature, steps: dict[str, Step], used: set[Source], path: str) -> None:
    for field in signature.inputs:
        if Source(None, field) not in used:
            raise _wrong(f"{path}.signature", f"no stage uses the input {field.name!r}")
    stages = {source.stage for source in used}
    for name in steps:
        if name not in stages:
            raise _wrong(f"{path}.stages.{name}", "nothing uses an output of this stage")


def _ordered(steps: dict[str, Step], path: str) -> list[Step]:
    """Return the steps, each after those it needs; otherwise as they were given."""
    waiting, ordered = dict(steps), list[Step]()
    while waiting:
        ready = [step for step in waiting.values() if not any(each.stage in waiting for each in step.inputs.values())]
        if not ready:
            raise _wrong(f"{path}.stages", f"these stages wait for each other: {', '.join(waiting)}")
        ordered.append(ready[0])
        del waiting[ready[0].name]
    return ordered


def _wrong(path: str, reason: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"{path}: {reason}", path=path)
