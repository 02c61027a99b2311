"""The DSPy module of a pipeline, whose parts are the modules of its stages, under their names."""

from __future__ import annotations

from typing import Any, NamedTuple

import dspy
import msgspec

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.pipelines.plan import Plan, Source, Step
from bridge.adapters.dspy.pipelines.types import is_same
from bridge.adapters.dspy.signatures import Field, Signature
from bridge.adapters.dspy.values.checks import Check, check_of
from bridge.adapters.dspy.values.inputs import plain


class _Input(NamedTuple):
    """An input of a stage. source: None: it always has the default. check: None: values of the source need none."""

    field: Field
    source: Source | None
    check: Check | None
    default: Any


class Pipeline(dspy.Module):  # type: ignore[misc]  # DSPy is not typed
    """Runs the stages of a pipeline one after the other. modules: those of the stages, by name."""

    def __init__(self, signature: Signature, plan: Plan, modules: dict[str, Any]) -> None:
        self._inputs = {field.python_name: Source(None, field) for field in signature.inputs}
        self._outputs = {field.python_name: plan.outputs[field.name] for field in signature.outputs}
        self._stages = {step.name: (_inputs(step), step.program.signature.outputs) for step in plan.steps}
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the pipeline's outputs."""
        values = {source: inputs.get(name) for name, source in self._inputs.items()}
        for done, (name, (wanted, outputs)) in enumerate(self._stages.items(), 1):
            arguments = {each.field.python_name: _value(name, each, values) for each in wanted}
            prediction = getattr(self, name)(**arguments)
            values |= {Source(name, field): prediction[field.python_name] for field in outputs}
            _announce(name, done, len(self._stages))
        return dspy.Prediction(**{name: values[source] for name, source in self._outputs.items()})


def _inputs(step: Step) -> list[_Input]:
    made = []
    signature = step.program.signature
    for field in signature.inputs:
        source, check = step.inputs.get(field.name), check_of(field, signature)
        default = check.value(msgspec.json.decode(field.default)) if field.default else None
        is_checked = source is not None and not is_same(field, source.field)
        made.append(_Input(field, source, check if is_checked else None, default))
    return made


def _value(stage: str, wanted: _Input, values: dict[Source, Any]) -> Any:
    """Return the value of an input. Raises PassedError with an LMError if what a model wrote does not fit."""
    if wanted.source is None:
        return wanted.default
    value = values[wanted.source]
    if wanted.check is None:
        return value
    try:
        return wanted.check.value(plain(value), stage)
    except errors.InvalidArgs as error:
        raise PassedError(errors.LMError(f"{wanted.source} is no input of {error}", lm_code="type_clash")) from error


def _announce(stage: str, done: int, total: int) -> None:
    run = current_run.get()
    if run is not None:
        run.context.emit("progress", {"phase": "stages", "done": done, "total": total, "message": stage})
