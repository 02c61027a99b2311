"""An optimization while it runs: what DSPy's optimizers get, and how rows are run, scored and reported for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import dspy

from bridge import errors
from bridge.adapters.dspy.chosen_model import names_of
from bridge.adapters.dspy.current_run import PassedError
from bridge.adapters.dspy.evaluation import plain_trace
from bridge.adapters.dspy.examples import Example, dspy_example, plain_example
from bridge.adapters.dspy.optimizing.progress import Progress
from bridge.adapters.dspy.rows import run_rows

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.chosen_model import ModelChoice
    from bridge.adapters.dspy.metrics import Metric, Score
    from bridge.adapters.dspy.prepared import Prepared
    from bridge.wire.codec import Format

current_task: ContextVar[Task | None] = ContextVar("current_task", default=None)

Function = Callable[[Any], Any]


class Task:
    """What an optimizer works on. Usable from any number of threads.

    student: the module; optimizers change copies of it. trainset, valset: rows; valset is None if the host sent none.
    models: those that options name, by the names. format: of the options of optimizers inside of the one that is run.
    """

    def __init__(
        self,
        context: Context,
        ready: Prepared,
        metric: Metric,
        models: dict[tuple[str, ...], Any],
        rows: tuple[list[Example], list[Example]],
    ) -> None:
        self.student = student_of(ready.module)
        self.trainset, valset = [[_row(example, ready) for example in side] for side in rows]
        self.valset = valset or None
        self.format: Format = context.format
        self.progress = Progress(context.emit)
        self._context = context
        self._ready = ready
        self._metric = metric
        self._models = models

    @property
    def scored(self) -> list[Any]:
        """Return the rows by whose scores programs are compared."""
        return self.valset or self.trainset

    def model(self, choice: ModelChoice | None) -> Any:
        """Return the model that an option names; None for None: the model of the program."""
        return None if choice is None else self._models[names_of(choice)]

    def teacher(self, choice: ModelChoice | None) -> dict[str, Any]:
        """Return DSPy's settings of the runs from which demos are made."""
        return {} if choice is None else {"lm": self.model(choice)}

    def metric(self, row: Any, prediction: Any, trace: Any = None) -> float:
        """Return the score of a prediction, 0 for None. An error passes through DSPy, which would take it for a 0."""
        return 0.0 if prediction is None else self._score(row, prediction, trace).value

    def feedback(
        self, row: Any, prediction: Any, trace: Any = None, predictor: Any = None, its_trace: Any = None
    ) -> Any:
        """Return the score of a prediction with the feedback that GEPA reads: the metric's, or the expected outputs."""
        score = self._score(row, prediction, trace)
        expected = json.dumps(row._example.outputs, ensure_ascii=False, default=str)
        feedback = score.feedback or f"Expected outputs: {expected}"
        return dspy.Prediction(score=score.value, feedback=feedback)

    def evaluate(self, module: Any, phase: str, threads: int, max_errors: int) -> float:
        """Return the average score of `module`; rows that fail count as 0. Raises the error of `max_errors` rows."""

        def scored(row: Any) -> tuple[float]:
            return (self.metric(row, module(**row.inputs())),)

        found = self.run_rows(scored, self.scored, threads, max_errors, phase)
        points: float = sum(each[0] for each in found if each is not None)
        return points / len(found)

    def run_rows(
        self, function: Function, rows: Sequence[Any], threads: int, max_errors: int, phase: str | None
    ) -> list[Any]:
        """Call `function` for each row, and return the results in order, None for one that failed.

        phase: of an evaluation, in which each result ends with a score. Raises the error of the last row if
        `max_errors` rows have failed; others are not started then.
        """
        results: list[Any] = [None] * len(rows)
        failures: list[Exception] = []
        is_full = len(rows) == len(self.scored)
        add = None if phase is None else self.progress.scores(phase, len(rows), counts=is_full)

        def work(index: int, _: Context) -> Any:
            if len(failures) >= max_errors:
                return None
            try:
                with dspy.context(trace=[]):  # which BestOfN and Refine need, and a metric may
                    return function(rows[index])
            except Exception as error:
                failures.append(error)
                return None

        def finish(index: int, result: Any) -> None:
            results[index] = result
            if add is not None:
                add(0.0 if result is None else float(result[-1]))

        run_rows(len(rows), work, finish, threads, self._context)
        if len(failures) >= max_errors:
            raise failures[-1]
        return results

    def _score(self, row: Any, prediction: Any, trace: Any) -> Score:
        """Return the metric's score. Its errors pass through DSPy, except that of a judge's model."""
        self._context.check()
        try:
            outputs = self._ready.outputs(prediction)
            steps = None
            if self._metric.wants_trace:
                steps = plain_trace(self._ready, dspy.settings.trace if trace is None else trace)
            return self._metric(row._example, outputs, steps)
        except errors.LMError:
            raise
        except Exception as error:
            raise PassedError(error) from error


def student_of(module: Any) -> Any:
    """Return a copy of `module` whose predictors know their names, and so do copies of them."""
    student = module.deepcopy()
    student._compiled = False
    for name, predictor in student.named_predictors():
        predictor.known_as = name
    return student


def _row(example: Example, ready: Prepared) -> Any:
    row = dspy_example(example, ready.signature)
    row._example = Example(**plain_example(example))
    return row
