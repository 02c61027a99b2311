"""Optimizers that run others, and what passes from one to the other."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import dspy


class StepFailed(BaseException):
    """Carries the error of an optimizer inside of another one, which would handle an Exception itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def as_step(optimizer: Any) -> Any:
    """Return `optimizer`, changed for BetterTogether, which logs errors of its steps and returns what it has.

    It raises StepFailed, and what it returns has the model of the program, without which BetterTogether logs a warning.
    """
    compile = optimizer.compile

    @functools.wraps(compile)
    def compile_or_fail(*args: Any, **kwargs: Any) -> Any:
        try:
            module = compile(*args, **kwargs)
        except Exception as error:
            raise StepFailed(error) from error
        module.set_lm(dspy.settings.lm)
        return module

    optimizer.compile = compile_or_fail
    return optimizer


class EnsembleOf:
    """Makes an ensemble of the best candidates of another optimizer: DSPy's has to be given its programs.

    inner: a function that returns the program that the other optimizer makes. size: how many candidates; if there are
    fewer, the best ones have several votes.
    """

    def __init__(self, inner: Callable[[], Any], size: int) -> None:
        self._inner = inner
        self._size = size

    def compile(self, student: Any) -> Any:
        """Return the ensemble."""
        candidates = sorted(self._inner().candidate_programs, key=lambda each: each["score"], reverse=True)
        voting = itertools.islice(itertools.cycle(candidates), self._size)
        return dspy.Ensemble().compile([each["program"].deepcopy() for each in voting])
