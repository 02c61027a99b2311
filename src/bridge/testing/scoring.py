"""Evaluations and optimizations without a model: the checks and events of real ones, and scores of made-up outputs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from bridge import errors
from bridge.adapters.dspy.chosen_model import configured
from bridge.adapters.dspy.commands.evaluation import EvaluateArgs, evaluated
from bridge.adapters.dspy.commands.optimization import OptimizeArgs, rows_of
from bridge.adapters.dspy.examples import Example, Examples, plain_example
from bridge.adapters.dspy.metrics import HostMetric, Metric, Score, metric_for
from bridge.adapters.dspy.modules import module_type
from bridge.adapters.dspy.programs import find_program
from bridge.adapters.dspy.rows import RowContext, error_of
from bridge.adapters.dspy.setup import Setup
from bridge.adapters.dspy.state import Definition, Learned
from bridge.testing.documents import main_of
from bridge.testing.runs import run
from bridge.testing.script import Script

if TYPE_CHECKING:
    from bridge._dispatch import Context

MOST_DEMOS = 4  # that an optimization adds


def evaluate(script: Script, args: EvaluateArgs, context: Context) -> dict[str, Any]:
    """Evaluate a program for `evaluate`, one row after the other, so that the values that a test has set are in order.

    Metrics of the host are called; any other one says whether the outputs are those that the examples expect.
    """
    setup = args.setup(find_program(args.program_id, context), context)
    configured(setup.models)
    examples = _examples(setup, args.devset, "args.devset")
    metric = metric_for(args.metric, examples, context, _no_judge, _outputs(setup))
    args = msgspec.structs.replace(args, threads=1)
    return evaluated(args, setup, examples, metric, context, _Scorer(script).scored)


class Optimized(NamedTuple):
    """What an optimization returns, as in the adapter's `optimizing.work`."""

    definition: Definition
    score_before: float
    score: float
    changes: list[dict[str, Any]]


def optimized(
    script: Script, args: OptimizeArgs, setup: Setup, options: Any, models: Any, context: Context
) -> Optimized:
    """Make the first examples of the trainset the program's demos, as if an optimizer had chosen them."""
    program = setup.program
    configured(setup.models)
    trainset, valset = rows_of(args, partial(_examples, setup))
    metric = metric_for(args.metric, trainset, context, _no_judge, _outputs(setup), examples_path="args.trainset")
    scorer = _Scorer(script)
    before = scorer.mean("baseline", setup, valset or trainset, metric, context)
    labels = {field.name: field.label for field in (*program.signature.inputs, *program.signature.outputs)}
    chosen = [plain_example(each) for each in trainset[:MOST_DEMOS]]
    demos = tuple(
        {labels.get(name, name): value for side in each.values() for name, value in side.items()} for each in chosen
    )
    definition = program.definition
    main = main_of(program)
    instructions = definition.learned.get(main, Learned()).instructions
    learned = {**definition.learned, main: Learned(instructions, demos)}
    after = scorer.mean("result", setup, valset or trainset, metric, context)
    changes = [{"predictor": main, "demos": chosen}]
    return Optimized(msgspec.structs.replace(definition, learned=learned), before, after, changes)


class _Scorer:
    """Scores runs on examples with the values that a test has set."""

    def __init__(self, script: Script) -> None:
        self._script = script

    def scored(self, setup: Setup, example: Example, metric: Metric, context: Context) -> dict[str, Any]:
        """Run a program on an example, and return its outputs and their score, as `evaluation.scored` does."""
        given = Example(**plain_example(example))
        try:
            outputs = run(self._script, setup, dict(given.inputs), context, "args.inputs")["outputs"]
        except errors.CallEnded:
            raise
        except errors.BridgeError as error:
            return {"score": 0.0, "error": error_of(error)}
        score = self._score(setup, given, metric, outputs)
        return {"outputs": outputs, "score": score.value, **({"feedback": score.feedback} if score.feedback else {})}

    def _score(self, setup: Setup, example: Example, metric: Metric, outputs: dict[str, Any]) -> Score:
        if not isinstance(metric, HostMetric):
            return Score(float(all(_is_right(outputs.get(name), right) for name, right in example.outputs.items())))
        call = {"predictor": main_of(setup.program), "inputs": example.inputs, "outputs": outputs}
        trace = [call] if metric.wants_trace else None
        return metric(example, outputs, trace)

    def mean(self, phase: str, setup: Setup, examples: list[Example], metric: Metric, context: Context) -> float:
        """Return the mean score of a program, with an event for each example."""
        total, rows = 0.0, RowContext.of(context)
        for done, example in enumerate(examples, 1):
            total += self.scored(setup, example, metric, rows)["score"]
            context.emit("progress", {"phase": phase, "done": done, "total": len(examples), "score": total / done})
        return total / len(examples)


def _examples(setup: Setup, rows: Any, path: str) -> list[Example]:
    """Return the examples at `path` of the args, at least one. Raises InvalidArgs."""
    extra = ("reasoning",) if module_type(setup.program.definition).has_reasoning else ()
    examples = Examples(setup.program.signature, extra, alternatives=True).read(rows, path)
    if not examples:
        raise errors.InvalidArgs(f"{path}: at least one example is needed", path=path)
    return examples


def _outputs(setup: Setup) -> list[str]:
    return [field.name for field in setup.program.signature.outputs]


def _is_right(actual: Any, expected: Any) -> bool:
    """Return whether an output is the expected one, or one of a list of them; the case of letters does not matter."""
    right = [expected, *(expected if isinstance(expected, list) else ())]
    return _folded(actual) in map(_folded, right)


def _folded(value: Any) -> str:
    return str(value).strip().casefold()


def _no_judge(module: Any, arguments: dict[str, Any]) -> Any:
    """Stand in for the model of a judge, which a mock does not ask."""
