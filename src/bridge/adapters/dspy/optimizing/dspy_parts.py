"""The parts of DSPy's optimizers that are replaced: threads, progress bars, printed lines, logs, and a fault.

DSPy's threads send a slow request a second time and go on after a cancel, its bars start a thread of tqdm. Only its
optimizers are changed; `ParallelExecutor` is what it was outside of an optimization.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, ClassVar

import dspy
from dspy.propose import grounded_proposer
from dspy.propose import utils as proposing
from dspy.teleprompt import bootstrap, random_search
from dspy.teleprompt import utils as optimizing
from dspy.utils.parallelizer import ParallelExecutor

from bridge.adapters.dspy.optimizing.task import current_task


class InferRules(dspy.InferRules):  # type: ignore[misc]  # DSPy is not typed
    """`dspy.InferRules`, whose candidates have signatures of their own.

    DSPy's share them, so that the best candidate ends up with the rules of the last one, and so does the program.
    """

    def update_program_instructions(self, predictor: Any, natural_language_rules: str) -> None:
        predictor.signature = predictor.signature.with_instructions(predictor.signature.instructions)
        super().update_program_instructions(predictor, natural_language_rules)


_execute = ParallelExecutor.execute


def _execute_for_task(self: Any, function: Callable[[Any], Any], data: list[Any]) -> list[Any]:
    """Call `function` for each row. Return the results, None for a row that failed."""
    task = current_task.get()
    if task is None:
        results: list[Any] = _execute(self, function, data)
        return results
    phase = "candidate" if self.compare_results else None
    return task.run_rows(function, data, self.num_threads, self.max_errors, phase)


class _Bar:
    """Has those methods of tqdm's bar that the optimizers call, and reports progress to the task instead."""

    _instances: ClassVar[list[Any]] = []

    def __init__(self, rows: Iterable[Any] = (), *, total: int | None = None, **settings: Any) -> None:
        self._rows = list(rows)
        self._total = len(self._rows) if total is None else total
        self._done = 0

    def __iter__(self) -> Iterator[Any]:
        """Yield the rows that demos are bootstrapped from."""
        for row in self._rows:
            self.update(1)
            yield row

    def update(self, number: int = 1) -> None:
        task = current_task.get()
        self._done += number
        if task is not None:
            task.progress.report("bootstrap" if self._rows else "search", min(self._done, self._total), self._total)

    def set_description(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass


def _print(*values: Any, **settings: Any) -> None:
    """Print nothing."""


def _is_wanted(record: logging.LogRecord) -> bool:
    """Return whether a record about inputs, or a row that has failed, is of interest.

    The inputs of rows have been checked, and rows that fail count as 0: their data is not to be logged. An optimizer
    passes inputs to its own predictors that they do not have.
    """
    return current_task.get() is None


def _without_colours(record: logging.LogRecord) -> bool:
    record.msg = re.sub(r"\x1b\[\d*m", "", str(record.msg))
    return True


ParallelExecutor.execute = _execute_for_task
bootstrap.tqdm = SimpleNamespace(tqdm=_Bar)
if importlib.util.find_spec("gepa") is not None:
    importlib.import_module("gepa.core.engine").tqdm = _Bar  # type: ignore[attr-defined]
for _module in (bootstrap, random_search, optimizing, proposing, grounded_proposer):
    _module.print = _print
for _name in ("predict.predict", "teleprompt.bootstrap"):
    logging.getLogger(f"dspy.{_name}").addFilter(_is_wanted)
for _name in ("mipro_optimizer_v2", "bettertogether"):
    logging.getLogger(f"dspy.teleprompt.{_name}").addFilter(_without_colours)
