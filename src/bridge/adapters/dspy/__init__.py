"""DSPy programs as commands. DSPy itself is imported by the warm-up, or by the first command that needs it.

The modules of `commands` declare them; a new one has to be imported here.
"""

from typing import TYPE_CHECKING, Any

import bridge.adapters.dspy.commands.batch
import bridge.adapters.dspy.commands.creation
import bridge.adapters.dspy.commands.documents
import bridge.adapters.dspy.commands.embedders
import bridge.adapters.dspy.commands.evaluation
import bridge.adapters.dspy.commands.execution
import bridge.adapters.dspy.commands.history
import bridge.adapters.dspy.commands.models
import bridge.adapters.dspy.commands.optimization
import bridge.adapters.dspy.commands.programs
import bridge.adapters.dspy.commands.retrieval
import bridge.adapters.dspy.commands.tools  # noqa: F401  # importing declares the commands
from bridge.adapters.dspy.commands import adapter

if TYPE_CHECKING:
    from bridge.adapters.dspy.current_run import current_context
    from bridge.adapters.dspy.run import run_module
    from bridge.adapters.dspy.tools.dspy_tools import host_tools

# For the authors of modules and adapters. The modules of these names import DSPy.
_EXPORTS = {
    "current_context": "bridge.adapters.dspy.current_run",
    "host_tools": "bridge.adapters.dspy.tools.dspy_tools",
    "run_module": "bridge.adapters.dspy.run",
}

__all__ = ["adapter", "current_context", "host_tools", "run_module"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
