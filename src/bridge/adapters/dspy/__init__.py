"""DSPy programs as commands. DSPy itself is imported by the warm-up, or by the first command that needs it.

The modules of `commands` declare them; a new one has to be imported here.
"""

import bridge.adapters.dspy.commands.execution
import bridge.adapters.dspy.commands.models
import bridge.adapters.dspy.commands.programs
import bridge.adapters.dspy.commands.tools  # noqa: F401  # importing declares the commands
from bridge.adapters.dspy.commands import adapter

__all__ = ["adapter"]
