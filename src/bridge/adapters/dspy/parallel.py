"""Lets the threads of `dspy.Parallel` work for the run that started them, with its context variables.

DSPy passes on its own settings only. Without the others, a call of a model there would belong to no run: it could not
be cancelled, streamed or counted. There are no progress bars, because DSPy clears the list of all of tqdm's bars: that
fails if another run creates one at that moment.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from types import SimpleNamespace
from typing import Any, ClassVar

from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils import parallelizer
from dspy.utils.parallelizer import ParallelExecutor


def _passing_context(wrap: Callable[..., Callable[[Any], Any]]) -> Callable[..., Callable[[Any], Any]]:
    """Return `ParallelExecutor._wrap_function`, changed to call the function in a copy of the current context."""

    @wraps(wrap)
    def _wrap_function(self: Any, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        context = copy_context()

        def run(settings: Any, item: Any) -> Any:
            thread_local_overrides.set(settings)
            return function(item)

        return wrap(self, lambda item: context.copy().run(run, thread_local_overrides.get(), item))

    return _wrap_function


ParallelExecutor._wrap_function = _passing_context(ParallelExecutor._wrap_function)


class _NoProgressBar:
    """Has those methods of tqdm's bar that DSPy calls."""

    _instances: ClassVar[list[Any]] = []

    def __init__(self, **settings: Any) -> None:
        pass

    def set_description(self, text: str) -> None:
        pass

    def update(self) -> None:
        pass

    def close(self) -> None:
        pass


parallelizer.tqdm = SimpleNamespace(tqdm=_NoProgressBar)
