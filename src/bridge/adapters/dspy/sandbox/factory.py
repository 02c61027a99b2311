"""Creates the sandbox of a run: the one that the operator allows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dspy

from bridge.adapters.dspy.sandbox.allowed import check_allowed
from bridge.adapters.dspy.sandbox.supervised import Supervised

if TYPE_CHECKING:
    from bridge.adapters.dspy.current_run import Run


def sandbox_factory(run: Run, seconds: float, output: int, *, lowers: bool = False) -> Callable[[], Any]:
    """Return the function that creates the sandbox of a run.

    seconds: of a step. output: characters of what it prints. lowers: whether the code is rewritten for the sandbox, see
    `lowering`. Raises NotAllowed.
    """
    check_allowed("this program", run.context)
    if run.context.worker.options.allow_code_execution == "monty":
        from bridge.adapters.dspy.sandbox.monty import MontySandbox

        factory = functools.partial(MontySandbox, run, seconds, output, lowers)
        factory.execution_instructions = MontySandbox.execution_instructions  # type: ignore[attr-defined]  # for DSPy
        return factory
    sandbox = type("DenoSandbox", (Supervised, dspy.PythonInterpreter), {})
    return lambda: sandbox(run, output)
