"""The command that evaluates a program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.commands.execution import RunArgs
from bridge.adapters.dspy.include import NOTHING, Include
from bridge.adapters.dspy.metrics import MetricDefinition, MetricFailed, judges_of, metric_for
from bridge.adapters.dspy.programs import find_program
from bridge.adapters.dspy.rows import DEFAULT_THREADS, RowResults, ThreadCount, run_rows

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.examples import Example
    from bridge.adapters.dspy.metrics import Metric
    from bridge.adapters.dspy.setup import Setup

Scored = Callable[["Setup", "Example", "Metric", "Context"], dict[str, Any]]


class EvaluateArgs(RunArgs, kw_only=True):
    """The args of evaluate.

    devset: examples, each with `inputs` and the `outputs` that are expected. metric: see metrics.py. others: examples
    of the same set, which are not run: what the metric reads is chosen by the fields of all. threads: how many runs
    there are at once. include: what each result has in addition. results: whether the reply has the results; events
    have them, too.
    """

    devset: Any
    metric: str | MetricDefinition
    others: list[Any] = msgspec.field(default_factory=list)
    include: Include = NOTHING
    threads: ThreadCount = DEFAULT_THREADS
    results: bool = True


@adapter.command("evaluate", EvaluateArgs, lane="run")
def evaluate(args: EvaluateArgs, context: Context) -> dict[str, Any]:
    """Run a program on examples, and return its score: the mean of what a metric says, from 0 to 1."""
    from bridge.adapters.dspy.evaluation import examples_among, examples_of, judge_of, scored
    from bridge.adapters.dspy.prepared import prepared

    program = find_program(args.program_id, context)
    judges = judges_of(args.metric, program, context)
    setup = args.setup(program, context, args.include)._replace(judges=judges)
    judge = judge_of(setup, context)
    examples = examples_of(setup, args.devset, "args.devset", alternatives=True)
    ready = prepared(setup.program)
    outputs = None if setup.program.is_registered else ready.names.values()
    all_examples = [*examples, *examples_among(setup, args.others)]
    metric = metric_for(args.metric, all_examples, context, judge, outputs)
    return evaluated(args, setup, examples, metric, context, scored)


def evaluated(
    args: EvaluateArgs, setup: Setup, examples: list[Example], metric: Metric, context: Context, scored: Scored
) -> dict[str, Any]:
    """Return the result of `evaluate`. scored: called as `evaluation.scored` of this adapter is."""
    started = time.monotonic()
    results = RowResults("evaluate", len(examples), context, keep=args.results)
    total = 0.0

    def work(index: int, row_context: Context) -> Any:
        try:
            row = scored(setup, examples[index], metric, row_context)
        except MetricFailed as error:
            raise MetricFailed(f"args.devset[{index}]: {error}", **{**error.details, "row": index}) from error
        return results.encoded(index, row)

    def finish(index: int, done: Any) -> None:
        nonlocal total
        row, encoded = done
        total += row["score"]
        results.add(index, row, encoded, score=total / (results.done + 1))

    run_rows(len(examples), work, finish, args.threads, context)
    reply = {
        "program_id": setup.program.id,
        "score": total / len(examples),
        "total": len(examples),
        "failed": results.failed,
        "execution_time": round(time.monotonic() - started, 6),
    }
    return reply if results.rows is None else {**reply, "results": results.rows}
