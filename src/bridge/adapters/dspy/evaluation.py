"""Runs of a program on examples, and the score of each."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapters.dspy import run
from bridge.adapters.dspy.chosen_model import configured
from bridge.adapters.dspy.examples import Example, Examples
from bridge.adapters.dspy.include import included
from bridge.adapters.dspy.modules import MODULES
from bridge.adapters.dspy.own_module import OwnModule
from bridge.adapters.dspy.prepared import Prepared, prepared
from bridge.adapters.dspy.prompt_fields import label_of
from bridge.adapters.dspy.rows import RowContext, error_of
from bridge.adapters.dspy.values.inputs import plain, with_text_form

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.comparisons import Judge
    from bridge.adapters.dspy.metrics import Metric
    from bridge.adapters.dspy.setup import Setup


def examples_of(setup: Setup, rows: Any, path: str, *, alternatives: bool = False) -> list[Example]:
    """Return the examples at `path` of the args, at least one. Raises InvalidArgs.

    alternatives: whether an expected output may also be a list of right ones. A module of the operator may be expected
    to return anything.
    """
    ready = prepared(setup.program)
    if isinstance(ready, Prepared):
        has_reasoning = MODULES[setup.program.definition.program_type].has_reasoning
        extra = ("reasoning",) if has_reasoning else ()
        examples = Examples(ready.signature, extra, alternatives=alternatives).read(rows, path)
    elif isinstance(rows, list):
        examples = [_own_example(ready, row, f"{path}[{index}]") for index, row in enumerate(rows)]
    else:
        raise errors.InvalidArgs(f"{path}: expected a list of examples", path=path, expected="list")
    if not examples:
        raise errors.InvalidArgs(f"{path}: at least one example is needed", path=path)
    return examples


def examples_among(setup: Setup, rows: list[Any]) -> list[Example]:
    """Return the examples among `rows`, without what is none."""
    found = []
    for row in rows:
        with contextlib.suppress(errors.InvalidArgs):
            found += examples_of(setup, [row], "", alternatives=True)
    return found


def _own_example(ready: OwnModule, row: Any, path: str) -> Example:
    sides = row if isinstance(row, dict) else {}
    inputs, outputs = sides.get("inputs"), sides.get("outputs", {})
    if not isinstance(inputs, dict) or not isinstance(outputs, dict) or len(sides) > 1 + ("outputs" in sides):
        raise errors.InvalidArgs(f"{path}: expected a map with inputs and outputs", path=path, expected="map")
    return Example(ready.arguments(inputs, f"{path}.inputs"), with_text_form(outputs, f"{path}.outputs"))


def judge_of(setup: Setup, context: Context) -> Judge:
    """Return what runs a judge, on its own models or else on the program's. Its events are not sent."""
    models, quiet = configured(setup.judges or setup.models), RowContext.of(context)
    return lambda module, arguments: run.run_on(models, module, arguments, quiet)


def scored(setup: Setup, example: Example, metric: Metric, context: Context) -> dict[str, Any]:
    """Run a program on an example. Return its outputs, its score, and the metric's feedback if there is any.

    The score is 0 if the run or a judge fails: then the result has the error. Raises MetricFailed and CallEnded.
    """
    ready = prepared(setup.program)
    trace: list[tuple[Any, Any, Any]] | None = [] if metric.wants_trace else None
    try:
        done = run.predict(setup, _arguments(ready, example), context, trace)
        row: dict[str, Any] = {"outputs": ready.outputs(done.prediction)}
        if done.run.truncated:
            row["truncated"] = True
        if setup.include:
            row |= included(setup.include, ready, done.prediction, done.run.recorder)
    except errors.CallEnded:
        raise
    except BaseException as error:  # a module of the operator may raise anything
        return {"score": 0.0, "error": error_of(error)}
    try:
        calls = None if trace is None else plain_trace(ready, trace)
        score = metric(example, row["outputs"], calls)
    except errors.LMError as error:
        return {**row, "score": 0.0, "error": error_of(error)}
    return {**row, "score": score.value, **({"feedback": score.feedback} if score.feedback else {})}


def _arguments(ready: Prepared | OwnModule, example: Example) -> dict[str, Any]:
    """Return the arguments of the program's module."""
    if isinstance(ready, OwnModule):
        return dict(example.inputs)
    return {field.python_name: example.inputs[field.name] for field in ready.signature.inputs}


def plain_trace(ready: Prepared | OwnModule, trace: list[tuple[Any, Any, Any]]) -> list[dict[str, Any]]:
    """Return the calls of predictors in a run, each as a map of `predictor` (its name in the module), `inputs` and
    `outputs`, whose fields have the host's names. Predictors of a copy of the module have that name as `known_as`."""
    names = {id(predictor): name for name, predictor in ready.module.named_predictors()}
    hosts: dict[str, str] = {}
    if isinstance(ready, Prepared):
        hosts = {field.label: field.name for field in (*ready.signature.inputs, *ready.signature.outputs)}

    def named(predictor: Any, values: Any) -> dict[str, Any]:
        fields = predictor.signature.fields
        labels = {name: label_of(name, fields[name]) if name in fields else name for name in values}
        return {hosts.get(labels[name], labels[name]): plain(value) for name, value in values.items()}

    return [
        {
            "predictor": names.get(id(predictor), getattr(predictor, "known_as", "self")),
            "inputs": named(predictor, inputs),
            "outputs": named(predictor, dict(prediction.items())),
        }
        for predictor, inputs, prediction in trace
    ]
