"""Modules that call the host's tools: `dspy.ReAct` and `dspy.ReActV2`."""

from __future__ import annotations

from typing import Any

import dspy

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError
from bridge.adapters.dspy.prompt_fields import dspy_signature
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.tools.dspy_tools import dspy_tools


def react(signature: Signature, tools: tuple[Tool, ...], iterations: int) -> Any:
    """Return a `dspy.ReAct`."""
    module = dspy.ReAct(dspy_signature(signature), dspy_tools(tools), max_iters=iterations)
    module.react.signature = _labelled(module.react.signature, signature)
    return module


def react_v2(signature: Signature, tools: tuple[Tool, ...], iterations: int) -> Any:
    """Return a `dspy.ReActV2`."""
    module = ReActV2(dspy_signature(signature), dspy_tools(tools, taken="submit"), max_iters=iterations)
    module.react.signature = _labelled(module.react.signature, signature)
    return module


class ReActV2(dspy.ReActV2):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.ReActV2` whose failures are failures of the model, and which shows the model no traceback."""

    def forward(self, **inputs: Any) -> Any:
        try:
            return super().forward(**inputs)
        except dspy.DSPyError:
            raise
        except ValueError as error:  # there was no valid call of `submit`
            raise PassedError(errors.LMError(errors.text_of(error), lm_code="no_answer")) from error

    def _make_submit_tool(self) -> dspy.Tool:
        tool = super()._make_submit_tool()
        return _Submit(tool.func, name=tool.name, desc=tool.desc, args=tool.args, arg_types=tool.arg_types)


class _Submit(dspy.Tool):  # type: ignore[misc]  # DSPy is not typed
    """The tool by which the model answers. Arguments that do not fit are described to it in one line."""

    def __call__(self, /, **arguments: Any) -> Any:
        try:
            return super().__call__(**arguments)
        except Exception as error:
            return f"error: submit: {errors.text_of(error)}"


def _labelled(made: Any, signature: Signature) -> Any:
    """Return the signature that DSPy has made, with instructions that contain the labels of fields."""
    return made.with_instructions(signature.with_labels(made.instructions))
