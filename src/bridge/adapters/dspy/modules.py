"""The DSPy module of each program type. A new type is one row in `MODULES`, with the function that creates its module.

DSPy is imported by those functions only: create_program checks types without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from bridge.adapters.dspy.signatures import Signature
    from bridge.adapters.dspy.tools import Tool

DEFAULT_ITERATIONS = 20  # calls of tools in one run


class ModuleType(NamedTuple):
    """The DSPy module of one program type.

    create: returns a module for a signature, the host's tools, and the maximum number of their calls in a run.

    main: the name of the predictor that writes the outputs and gets the `demos` of create_program. has_reasoning:
    whether it also writes `reasoning`.
    takes_tools: whether programs of this type have tools (they need at least one) and a number of iterations.
    takes_config: whether the module can be called with `config`, the settings of one run.
    """

    create: Callable[[Signature, tuple[Tool, ...], int], Any]
    main: str
    has_reasoning: bool = False
    takes_tools: bool = False
    takes_config: bool = True


def _predict(signature: Signature, tools: tuple[Tool, ...], iterations: int) -> Any:
    from bridge.adapters.dspy.predictor import predictor
    from bridge.adapters.dspy.prompt_fields import dspy_signature

    return predictor(dspy_signature(signature))


def _chain_of_thought(signature: Signature, tools: tuple[Tool, ...], iterations: int) -> Any:
    import dspy

    from bridge.adapters.dspy.predictor import predictor
    from bridge.adapters.dspy.prompt_fields import dspy_signature

    module = dspy.ChainOfThought(dspy_signature(signature))
    module.predict = predictor(module.predict.signature)
    return module


def _react(signature: Signature, tools: tuple[Tool, ...], iterations: int) -> Any:
    import dspy

    from bridge.adapters.dspy.prompt_fields import dspy_signature
    from bridge.adapters.dspy.tools.dspy_tools import dspy_tools

    module = dspy.ReAct(dspy_signature(signature), dspy_tools(tools), max_iters=iterations)
    react = module.react.signature
    # DSPy's instructions contain the Python names of the fields.
    module.react.signature = react.with_instructions(signature.with_labels(react.instructions))
    return module


MODULES: dict[str, ModuleType] = {
    "predict": ModuleType(_predict, "self"),
    "chain_of_thought": ModuleType(_chain_of_thought, "predict", has_reasoning=True),
    "react": ModuleType(_react, "extract.predict", has_reasoning=True, takes_tools=True, takes_config=False),
}
