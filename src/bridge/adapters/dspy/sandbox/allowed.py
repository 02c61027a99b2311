"""Which sandbox the operator allows."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from bridge import errors

if TYPE_CHECKING:
    from bridge._dispatch import Context


def check_allowed(what: str, context: Context) -> None:
    """Raise NotAllowed if the operator has not allowed to run code of models, or if the sandbox is not installed."""
    allowed = context.worker.options.allow_code_execution
    if allowed is None:
        raise errors.NotAllowed(
            f"{what} runs code that a model has written: the operator of the worker has not allowed that"
            " (--allow-code-execution)"
        )
    if allowed == "monty" and importlib.util.find_spec("dspy_monty_interpreter") is None:
        raise errors.NotAllowed(f"{what} needs a sandbox that is not installed: pip install 'dspex-bridge[sandbox]'")
