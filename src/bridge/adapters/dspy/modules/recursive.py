"""`dspy.RLM`, whose code runs in the sandbox that the operator allows."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import dspy
from dspy.primitives.code_interpreter import CodeInterpreterError

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.prompt_fields import dspy_signature
from bridge.adapters.dspy.sandbox.factory import sandbox_factory
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.tools.dspy_tools import dspy_tools
from bridge.adapters.dspy.values.checks import check_of
from bridge.adapters.dspy.values.inputs import plain


class Rlm(dspy.RLM):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.RLM` whose code runs in the sandbox that the operator allows.

    The code cannot create predictors of DSPy: DSPy would import what the types in their signatures name.
    """

    def __init__(self, signature: Signature, tools: tuple[Tool, ...], seconds: float, **limits: int) -> None:
        super().__init__(dspy_signature(signature), tools=dspy_tools(tools, taken="llm_query"), **limits)
        self._seconds = seconds
        self._checks = {field.python_name: check_of(field, signature) for field in signature.outputs}

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the prediction. The code gets the inputs as plain data."""
        run = current_run.get()
        assert run is not None
        try:
            factory = sandbox_factory(run, self._seconds, self.max_output_chars)
        except errors.NotAllowed as error:
            raise PassedError(error) from error
        values = {name: plain(value) for name, value in inputs.items()}
        try:
            return super().forward(interpreter_factory=factory, **values)
        except CodeInterpreterError as error:  # of the sandbox, not of the code in it
            raise PassedError(errors.HandlerError(f"the sandbox: {errors.text_of(error)}")) from error

    def _setup_facade(self, *args: Any) -> str:
        return ""

    def _inject_execution_context(self, interpreter: Any, execution_tools: dict[str, Callable[..., Any]]) -> None:
        guarded = {name: interpreter.guarded(tool) for name, tool in execution_tools.items()}
        super()._inject_execution_context(interpreter, guarded)

    def _make_interpreter_tool(self, tool: dspy.Tool) -> Callable[..., Any]:
        """Return a tool as a function with named parameters, so that the code may pass arguments by their place."""

        def call(**arguments: Any) -> Any:
            return tool(**arguments)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [name for name in tool.args if name.isidentifier()]
        parameters = [inspect.Parameter(name, kind) for name in names]
        call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # a function may have it
        return call

    def _process_final_output(self, result: Any, names: list[str]) -> tuple[dict[str, Any] | None, str | None]:
        """Return the outputs that the code has submitted, as values of their types, or what is wrong with them."""
        given = result.output
        if not isinstance(given, dict) or not given.keys() >= {*names}:
            return None, f"[Error] SUBMIT needs the outputs {', '.join(names)}"
        try:
            return {name: self._checks[name].value(given[name], "SUBMIT") for name in names}, None
        except errors.InvalidArgs as error:
            return None, f"[Type Error] {error}"
