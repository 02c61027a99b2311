"""The command that optimizes a program: `optimizers` has the optimizers, `optimizing` what they need."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.chosen_model import ModelChoice, models_for, names_of
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.commands.execution import RunArgs
from bridge.adapters.dspy.format_choice import FormatArg
from bridge.adapters.dspy.metrics import MetricDefinition, judges_of, metric_for
from bridge.adapters.dspy.optimizers import becoming, models_of, read_options, splits
from bridge.adapters.dspy.programs import add_program, check_id, find_program
from bridge.adapters.dspy.state import Program

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.examples import Example
    from bridge.adapters.dspy.metrics import Metric
    from bridge.adapters.dspy.optimizing.options import Options
    from bridge.adapters.dspy.optimizing.work import ChosenModels, Optimized
    from bridge.adapters.dspy.setup import Setup
    from bridge.adapters.dspy.state import Definition, State

MOST_ROWS = 10_000  # of a trainset and of a valset: an optimizer runs each of them many times


class OptimizeArgs(msgspec.Struct, kw_only=True):
    """The args of optimize.

    optimizer: a key of OPTIMIZERS; options: its own (optimizing/options.py). trainset: examples that it learns from;
    valset: those by which it compares programs (default: the trainset). metric: as in evaluate. model, adapter: as in
    execute_program, also for what the options name no model for. save_as: the id of the optimized program (default: a
    new one, or with `replace` this program's). replace: whether a program of that id may be replaced.
    """

    program_id: str | None = None
    optimizer: str
    trainset: list[Any]
    valset: list[Any] = []
    metric: str | MetricDefinition
    options: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    model: ModelChoice | None = None
    adapter: FormatArg | None = None
    save_as: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    replace: bool = False
    session_id: str | None = None


@adapter.command("optimize", OptimizeArgs, lane="run")
def optimize(args: OptimizeArgs, context: Context) -> dict[str, Any]:
    """Improve a program's instructions and demos with an optimizer of DSPy, and add the result to the session."""
    return improve(args, context, _work, _document_of)


def improve(
    args: OptimizeArgs,
    context: Context,
    work: Callable[..., Any],
    document_of: Callable[[Program], dict[str, Any]],
) -> dict[str, Any]:
    """Return the result of `optimize`. work: runs the optimizer. document_of: returns a program as a document."""
    options = read_options(args.optimizer, args.options, context.format)
    if len(args.trainset) == 1 and not args.valset and splits(args.optimizer, options, context.format):
        raise errors.InvalidArgs(
            f"args.trainset: one example is too few for {args.optimizer} without a valset, which it takes from it",
            path="args.trainset",
        )
    program = find_program(args.program_id, context)
    if program.is_registered:
        raise errors.InvalidArgs(
            f"args.program_id: {program.id} is a program of the operator, for which a session cannot store what an"
            " optimizer finds",
            path="args.program_id",
        )
    becoming(args.optimizer, options, program.definition)  # raises InvalidArgs
    program_id = _id(args, program, context)
    models = _models(options, program, context)
    judges = judges_of(args.metric, program, context)
    setup = RunArgs(args.program_id, model=args.model, adapter=args.adapter).setup(program, context)
    setup = setup._replace(judges=judges)
    found = work(args, setup, options, models, context)
    context.take_turn()
    saved = _save(program_id, found.definition, args, context)
    return {
        "program_id": saved.id,
        "score_before": found.score_before,
        "score": found.score,
        "changes": found.changes,
        "document": document_of(saved),
    }


def _models(options: Options, program: Program, context: Context) -> ChosenModels:
    """Return the configured models that options name, by the names. Raises InvalidArgs and LMNotConfigured."""
    found = {}
    for path, choice in models_of(options, context.format):
        names = names_of(choice, path)
        found[names] = models_for(program, names, context.session.state, context, path)
    return found


def _work(args: OptimizeArgs, setup: Setup, options: Options, models: ChosenModels, context: Context) -> Optimized:
    from bridge.adapters.dspy.evaluation import examples_of
    from bridge.adapters.dspy.optimizing.work import optimized

    rows = rows_of(args, partial(examples_of, setup))
    metric = _metric(args, rows, setup, context)
    return optimized(setup, args.optimizer, options, metric, models, rows, context)


def _document_of(program: Program) -> dict[str, Any]:
    from bridge.adapters.dspy.documents import document_of

    return document_of(program)


def _id(args: OptimizeArgs, program: Program, context: Context) -> str:
    """Return the id of the optimized program. Raises ProgramExists, and QuotaExceeded before the work is done."""
    program_id = args.save_as or (program.id if args.replace else str(uuid.uuid4()))
    check_id(program_id, context)
    state: State = context.session.state
    if not args.replace and state.get(program_id) is not None:
        raise errors.ProgramExists(f"Program with ID '{program_id}' already exists", program_id=program_id)
    state.check(Program(program_id, program.definition))
    return program_id


def _save(program_id: str, definition: Definition, args: OptimizeArgs, context: Context) -> Program:
    """Add the optimized program. If its id was taken meanwhile, it gets a new one."""
    state: State = context.session.state
    if not args.replace and state.get(program_id) is not None:
        program_id = str(uuid.uuid4())
    return add_program(state, program_id, definition)


def rows_of(
    args: OptimizeArgs, examples_of: Callable[[Any, str], list[Example]]
) -> tuple[list[Example], list[Example]]:
    """Return the trainset and the valset. examples_of: reads examples at a path. Raises InvalidArgs."""
    for name in ("trainset", "valset"):
        if len(getattr(args, name)) > MOST_ROWS:
            raise errors.InvalidArgs(f"args.{name}: more than {MOST_ROWS} examples", path=f"args.{name}")
    trainset = examples_of(args.trainset, "args.trainset")
    return trainset, examples_of(args.valset, "args.valset") if args.valset else []


def _metric(args: OptimizeArgs, rows: tuple[list[Example], list[Example]], setup: Setup, context: Context) -> Metric:
    """Return the metric. Raises InvalidArgs if it cannot compare the examples, and NotAllowed."""
    from bridge.adapters.dspy.evaluation import judge_of

    judge = judge_of(setup, context)
    outputs = [field.name for field in setup.program.signature.outputs]
    trainset, valset = rows
    if valset:
        metric_for(args.metric, valset, context, judge, outputs, examples_path="args.valset")
    return metric_for(args.metric, trainset, context, judge, outputs, examples_path="args.trainset")
