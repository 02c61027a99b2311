"""Programs ready to run: the DSPy module of each, the checks of its inputs and the names of its outputs."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

from bridge.adapters.dspy import learning
from bridge.adapters.dspy.modules import DEFAULT_ITERATIONS, MODULES
from bridge.adapters.dspy.own_module import OwnModule
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.state import Program
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.values.inputs import Inputs, plain

LARGEST_SHARED = 16_384  # characters of a signature; the cache of 1024 outlives the programs


class Prepared:
    """A DSPy module, the checks of its inputs, and the names of its outputs. Usable from any number of threads.

    signature: the host's. arguments(inputs, path): returns the module's arguments, as `Inputs.arguments` does. names:
    the host's names of the output fields, by label. takes_config: whether the module can be called with `config`, the
    settings of one run. is_own: whether the operator wrote the module.
    """

    is_own = False

    def __init__(self, signature: Signature, module: Any, *, takes_config: bool) -> None:
        self.signature = signature
        self.module = module
        self.takes_config = takes_config
        self.names = {field.label: field.name for field in signature.outputs}
        self.arguments = Inputs(signature.inputs).arguments
        self._outputs = {field.python_name: field.name for field in signature.outputs}
        self._has_reasoning = "reasoning" in self._outputs.values()

    def outputs(self, prediction: Any) -> dict[str, Any]:
        """Return the values of `prediction` under the host's names, in types that every wire format has.

        Of the fields that DSPy's modules add only the reasoning is returned, unless the host has an output of that
        name. Trajectories are sent as events.
        """
        return {
            self._outputs.get(name, name): plain(value)
            for name, value in prediction.items()
            if name in self._outputs or (name == "reasoning" and not self._has_reasoning)
        }


def prepared(program: Program) -> Prepared | OwnModule:
    """Return what runs `program`, which must have been checked.

    Programs without tools share it if their signatures are equal.
    """
    found = _prepared.get(program)
    if found is None:
        found = _prepared[program] = _prepare(program)
    return found


def register(program: Program, module: OwnModule) -> None:
    """Make `module` what runs `program`, a program of the operator."""
    _prepared[program] = module


_prepared: weakref.WeakKeyDictionary[Program, Prepared | OwnModule] = weakref.WeakKeyDictionary()


def _prepare(program: Program) -> Prepared:
    signature, definition = program.signature, program.definition
    if MODULES[definition.program_type].takes_tools:
        iterations = definition.max_iters or DEFAULT_ITERATIONS
        made = _create(signature, definition.program_type, definition.tools, iterations)
    else:
        create = _create if signature.size > LARGEST_SHARED or definition.learned else _shared
        made = create(signature, definition.program_type)
    if definition.learned:
        learning.apply(definition.learned, made.module, signature)
    return made


def _create(
    signature: Signature, program_type: str, tools: tuple[Tool, ...] = (), iterations: int = DEFAULT_ITERATIONS
) -> Prepared:
    module_type = MODULES[program_type]
    return Prepared(signature, module_type.create(signature, tools, iterations), takes_config=module_type.takes_config)


_shared = lru_cache(maxsize=1024)(_create)
