"""Optimizers that run others, and what passes from one to the other."""

from __future__ import annotations

import functools
from typing import Any

import dspy


class StepFailed(BaseException):
    """Carries the error of an optimizer inside of another one, which would handle an Exception itself."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def passing_errors(optimizer: Any) -> Any:
    """Return `optimizer`, changed to raise StepFailed: BetterTogether logs errors and returns what it has."""
    compile = optimizer.compile

    @functools.wraps(compile)
    def compile_or_fail(*args: Any, **kwargs: Any) -> Any:
        try:
            return compile(*args, **kwargs)
        except Exception as error:
            raise StepFailed(error) from error

    optimizer.compile = compile_or_fail
    return optimizer


class EnsembleOf:
    """Makes an ensemble of the best candidates of another optimizer: DSPy's has to be given its programs.

    inner: a function that returns the program that the other optimizer makes. size: how many candidates.
    """

    def __init__(self, inner: Any, size: int) -> None:
        self._inner = inner
        self._size = size

    def compile(self, student: Any) -> Any:
        """Return the ensemble. Raises ValueError if there are fewer than two different candidates."""
        best = self._inner()
        candidates: list[Any] = []
        for each in (best, *(found["program"] for found in getattr(best, "candidate_programs", ()))):
            if all(each.dump_state() != other.dump_state() for other in candidates):
                candidates.append(each)
        if len(candidates) < 2:
            raise ValueError("it found no two programs that differ")
        return dspy.Ensemble().compile(candidates[: self._size])
