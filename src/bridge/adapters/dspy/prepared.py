"""Programs ready to run: the DSPy module of each, the checks of its inputs and the names of its outputs."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

from bridge.adapters.dspy import learning
from bridge.adapters.dspy.model_errors import wrong_output
from bridge.adapters.dspy.modules import ADDED, module_type, tools_of
from bridge.adapters.dspy.own_module import OwnModule
from bridge.adapters.dspy.pipelines.module import Pipeline
from bridge.adapters.dspy.pipelines.plan import plan
from bridge.adapters.dspy.pipelines.stages import PIPELINE
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.state import Definition, Program
from bridge.adapters.dspy.tools import model_names
from bridge.adapters.dspy.trajectories import trajectory_of
from bridge.adapters.dspy.values.checks import Inputs
from bridge.adapters.dspy.values.conversion import LocatedError, convert, exact_numbers
from bridge.adapters.dspy.values.inputs import plain
from bridge.records import EncodedValue

LARGEST_SHARED = 16_384  # characters of a signature; the cache of 1024 outlives the programs


class Prepared:
    """A DSPy module, the checks of its inputs, and the names of its outputs. Usable from any number of threads.

    signature: the host's. arguments(inputs, path): returns the module's arguments, as `Inputs.arguments` does. names:
    the host's names of the output fields, by label. names_calls: whether events name the predictor and the
    call.
    """

    def __init__(self, signature: Signature, definition: Definition, module: Any = None) -> None:
        kind = module_type(definition)
        self.signature = signature
        self.module = kind.create(signature, definition) if module is None else module
        self.names_calls = kind.names_calls
        self.names = {field.label: field.name for field in signature.outputs}
        self.arguments = Inputs(signature).arguments
        self._described = {field.python_name: field.type for field in signature.outputs if field.schema}
        self._outputs = {field.python_name: field.name for field in signature.outputs}
        self._fields = {field.python_name: field.name for field in (*signature.inputs, *signature.outputs)}
        tools = tools_of(definition)
        self._tools = {shown: tool.name for shown, tool in zip(model_names(tools, kind.own_tools), tools, strict=True)}
        self._returned = {name: name for name in ADDED if name not in self._outputs.values()} | self._outputs

    def outputs(self, prediction: Any) -> dict[str, Any]:
        """Return the values of `prediction` under the host's names, in types that every wire format has.

        Raises LMError for a value that its JSON Schema does not allow: not every module reads its values from a reply.
        Of the fields that DSPy's modules add only those in ADDED are returned, unless the host has an output of that
        name. Trajectories are sent as events.
        """
        returned = self._returned
        return {
            returned[name]: plain(self._checked(name, value)) for name, value in prediction.items() if name in returned
        }

    def _checked(self, name: str, value: Any) -> Any:
        if name not in self._described:
            return value
        try:
            return convert(exact_numbers(value), self._described[name])
        except LocatedError as error:
            raise wrong_output(self._outputs[name], error) from None

    def trajectory(self, prediction: Any) -> Any:
        """Return the steps of an agent, None of any other module."""
        return trajectory_of(prediction, self._fields, self._tools)


def prepared(program: Program) -> Prepared | OwnModule:
    """Return what runs `program`, which must have been checked.

    Programs that have nothing but a signature and a type share it if these are equal.
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
    if definition.program_type == PIPELINE:
        return _pipeline(signature, definition)
    has_parts = definition.tools or definition.options or definition.learned or definition.max_iters
    if has_parts or signature.size > LARGEST_SHARED:
        made = Prepared(signature, definition)
    else:
        made = _shared(signature, definition.program_type)
    if definition.learned:
        learning.apply(definition.learned, made.module, signature)
    return made


def _pipeline(signature: Signature, definition: Definition) -> Prepared:
    """Return a pipeline; what it has learned, its stages have."""
    made = plan(definition, signature)
    stages = {step.name: _prepare(step.program) for step in made.steps}
    modules = {name: stage.module for name, stage in stages.items()}
    ready = Prepared(signature, definition, Pipeline(signature, made, modules))
    for stage in stages.values():
        ready.names = {**stage.names, **ready.names}
    return ready


@lru_cache(maxsize=1024)
def _shared(signature: Signature, program_type: str) -> Prepared:
    return Prepared(signature, Definition(_NO_SIGNATURE, program_type))


_NO_SIGNATURE = EncodedValue(b"", "json")  # of a definition whose signature has been parsed
