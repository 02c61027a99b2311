"""An optimization while it runs: what DSPy's optimizers get, and how rows are run, scored and reported for them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import dspy

from bridge.adapters.dspy.current_run import PassedError
from bridge.adapters.dspy.examples import Example, dspy_example, plain_example
from bridge.adapters.dspy.optimizing.progress import Progress
from bridge.adapters.dspy.prompt_fields import label_of
from bridge.adapters.dspy.values.inputs import plain

if TYPE_CHECKING:
    from bridge.adapters.dspy.current_run import Run
    from bridge.adapters.dspy.metrics import Metric, Score
    from bridge.adapters.dspy.prepared import Prepared
    from bridge.wire.codec import Format

current_task: ContextVar[Task | None] = ContextVar("current_task", default=None)

Function = Callable[[Any], Any]


class Task:
    """What an optimizer works on. Usable from any number of threads.

    student: the module; optimizers change copies of it. trainset, valset: rows; valset is None if the host sent none.
    models: by the names that options use. format: of the options of optimizers inside of the one that is run.
    """

    def __init__(
        self,
        run: Run,
        ready: Prepared,
        metric: Metric,
        models: dict[str, Any],
        rows: tuple[list[Example], list[Example]],
        format: Format,
    ) -> None:
        self.student = student_of(ready.module)
        self.trainset, valset = [[_row(example, ready) for example in side] for side in rows]
        self.valset = valset or None
        self.format = format
        self.progress = Progress(run.context.emit)
        self._run = run
        self._ready = ready
        self._metric = metric
        self._models = models

    @property
    def scored(self) -> list[Any]:
        """Return the rows by whose scores programs are compared."""
        return self.valset or self.trainset

    def model(self, name: str | None) -> Any:
        """Return the model of that name; None for None: the model of the program."""
        return None if name is None else self._models[name]

    def teacher(self, name: str | None) -> dict[str, Any]:
        """Return DSPy's settings of the runs from which demos are made."""
        return {} if name is None else {"lm": self._models[name]}

    def metric(self, row: Any, prediction: Any, trace: Any = None) -> float:
        """Return the score of a prediction, 0 for None. An error passes through DSPy, which would take it for a 0."""
        return 0.0 if prediction is None else self._score(row, prediction, trace).value

    def feedback(
        self, row: Any, prediction: Any, trace: Any = None, predictor: Any = None, its_trace: Any = None
    ) -> Any:
        """Return the score of a prediction with the feedback that GEPA reads: the metric's, or the expected outputs."""
        score = self._score(row, prediction, trace)
        expected = plain_example(row._example)["outputs"]
        feedback = score.feedback or f"Expected outputs: {json.dumps(expected, ensure_ascii=False, default=str)}"
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
        `max_errors` rows have failed.
        """
        failures: list[Exception] = []
        is_full = len(rows) == len(self.scored)
        add = None if phase is None else self.progress.scores(phase, len(rows), counts=is_full)

        def run_row(row: Any) -> Any:
            self._run.check()
            result = None
            try:
                with dspy.context(trace=[]):  # which BestOfN and Refine need, and a metric may
                    result = function(row)
            except Exception as error:
                failures.append(error)
                if len(failures) >= max_errors:
                    raise
            if add is not None:
                add(0.0 if result is None else float(result[-1]))
            return result

        return _on_threads(run_row, rows, threads)

    def _score(self, row: Any, prediction: Any, trace: Any) -> Score:
        self._run.check()
        try:
            outputs = self._ready.outputs(prediction)
            steps = self._steps(trace) if self._metric.wants_trace else None
            return self._metric(row._example, outputs, steps)
        except Exception as error:
            raise PassedError(error) from error

    def _steps(self, trace: Any) -> list[dict[str, Any]]:
        """Return the calls of predictors in a run, as hosts get them."""
        steps = dspy.settings.trace if trace is None else trace
        return [_step(*each) for each in steps or ()]


def student_of(module: Any) -> Any:
    """Return a copy of `module` whose predictors know their names, and so do copies of them."""
    student = module.deepcopy()
    student._compiled = False
    for name, predictor in student.named_predictors():
        predictor.known_as = name
    return student


def _step(predictor: Any, inputs: dict[str, Any], outputs: Any) -> dict[str, Any]:
    labels = {name: label_of(name, field) for name, field in predictor.signature.fields.items()}
    sides = {"inputs": inputs, "outputs": outputs}
    return {"predictor": predictor.known_as} | {
        side: {labels.get(name, name): plain(value) for name, value in values.items()} for side, values in sides.items()
    }


def _row(example: Example, ready: Prepared) -> Any:
    row = dspy_example(example, ready.signature)
    row._example = example
    return row


def _on_threads(function: Function, rows: Sequence[Any], threads: int) -> list[Any]:
    """Return the results of `function` for `rows`, in order. The first error ends all calls, and is raised."""
    if min(threads, len(rows)) < 2:
        return [function(row) for row in rows]
    context, failed = copy_context(), threading.Event()

    def call(row: Any) -> Any:
        if failed.is_set():
            return None
        try:
            return context.copy().run(function, row)
        except BaseException:
            failed.set()
            raise

    with ThreadPoolExecutor(threads, "bridge-rows") as pool:
        return list(pool.map(call, rows))
