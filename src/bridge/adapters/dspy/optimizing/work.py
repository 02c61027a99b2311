"""One optimization, from the scores before it to the definition of the optimized program."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, NamedTuple

import dspy
import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy import learning, optimizers, run
from bridge.adapters.dspy.models import lm_for
from bridge.adapters.dspy.optimizing import dspy_parts  # noqa: F401  # imported for its effect
from bridge.adapters.dspy.optimizing.changes import changes, learned_by
from bridge.adapters.dspy.optimizing.composed import StepFailed
from bridge.adapters.dspy.optimizing.task import Task, current_task, student_of
from bridge.adapters.dspy.prepared import Prepared, prepared
from bridge.adapters.dspy.rows import RowContext
from bridge.adapters.dspy.state import Definition, Program

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.examples import Example
    from bridge.adapters.dspy.metrics import Metric
    from bridge.adapters.dspy.optimizing.options import Options
    from bridge.adapters.dspy.settings import Model
    from bridge.adapters.dspy.setup import Setup


ChosenModels = dict[tuple[str, ...], tuple["Model", ...]]  # by their names


class Optimized(NamedTuple):
    """What an optimizer has made of a program: its definition, the scores of both, and what has changed."""

    definition: Definition
    score_before: float
    score: float
    changes: list[dict[str, Any]]


def optimized(
    setup: Setup,
    optimizer: str,
    options: Options,
    metric: Metric,
    chosen: ChosenModels,
    rows: tuple[list[Example], list[Example]],
    context: Context,
) -> Optimized:
    """Run an optimizer. rows: the trainset and the valset. chosen: the models that the options name.

    Raises InvalidArgs if the program has nothing that it could change, the errors of the metric, LMError, CallEnded,
    and HandlerError if the optimizer itself fails.
    """
    ready = prepared(setup.program)
    assert isinstance(ready, Prepared)  # not a module of the operator

    quiet = RowContext.of(context)

    def work() -> Optimized:
        models = {names: _silent(lm_for(found, {}, quiet)) for names, found in chosen.items()}
        task = Task(context, ready, metric, models, rows)
        token = current_task.set(task)
        # SIMBA's own inputs are not of the types that it declares. It has no argument for the number of errors.
        settings = {"warn_on_type_mismatch": False, "max_errors": options.max_errors}
        try:
            with dspy.context(**settings):
                return _work(setup, optimizer, options, task)
        finally:
            current_task.reset(token)

    found: Optimized = run.perform(setup, quiet, work, [model for found in chosen.values() for model in found])
    return found


def _silent(lm: Any) -> Any:
    """Return a copy of a model that does not print its history, for which COPRO asks the model of its options."""
    lm = lm.copy()
    lm.inspect_history = lambda n=1: None
    return lm


def _work(setup: Setup, optimizer: str, options: Options, task: Task) -> Optimized:
    if options.seed:
        random.Random(options.seed).shuffle(task.trainset)
    definition = setup.program.definition
    before = learning.of(task.student)
    if not before:
        raise errors.InvalidArgs(
            f"args.program_id: {setup.program.id} has no predictors, whose instructions or demos could be improved",
            path="args.program_id",
        )
    most = min(options.max_errors, len(task.scored))  # a program that fails for all rows has no score
    score_before = task.evaluate(task.student, "baseline", options.threads, most)
    after = learning.of(_compiled(optimizer, options, task))
    learned = learned_by(before, after, definition.learned)
    found = optimizers.becoming(optimizer, options, definition)
    found = msgspec.structs.replace(found, learned=learned, created_at=timestamp())
    module = student_of(prepared(Program("", found)).module)  # what is scored is what is stored
    score = task.evaluate(module, "result", options.threads, most)
    return Optimized(found, score_before, score, changes(before, after, setup.program.signature))


def _compiled(optimizer: str, options: Options, task: Task) -> Any:
    """Return the module that the optimizer returns. Its own faults become errors that name it."""
    try:
        return optimizers.compile(optimizer, options, task)
    except (Exception, StepFailed) as failed:
        error = failed.error if isinstance(failed, StepFailed) else failed
    for each in (error, error.__cause__, error.__context__):
        if isinstance(each, dspy.DSPyError | errors.BridgeError):
            raise each
    raise errors.HandlerError(f"the optimizer {optimizer} failed: {errors.text_of(error)}") from error
