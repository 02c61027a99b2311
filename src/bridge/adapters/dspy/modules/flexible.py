"""`dspy.Flex`, whose source runs in the sandbox that the operator allows, and the predictors that it may create."""

from __future__ import annotations

import re
from typing import Any

import dspy
from dspy.predict.flex.bridge import BridgeRuntime
from dspy.primitives.code_interpreter import CodeInterpreterError
from dspy.primitives.facade import SANDBOX_LM_KWARGS, SIGNATURE_MARKER, FacadeInvocation

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.declarations import RESERVED
from bridge.adapters.dspy.modules.options import MOST_ITERATIONS
from bridge.adapters.dspy.prompt_fields import dspy_signature
from bridge.adapters.dspy.sandbox.factory import sandbox_factory
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.tools.dspy_tools import dspy_tools
from bridge.adapters.dspy.values.checks import check_of
from bridge.adapters.dspy.values.inputs import plain
from bridge.adapters.type_names import TypeNameError, parse_type

_KINDS = ("Predict", "ChainOfThought", "ReAct", "ReActV2")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}", re.ASCII)


class Flex(dspy.Flex):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.Flex`. source: of its module; "": one predictor, or an agent if there are tools.

    It has been checked. seconds, output: limits of a step in the sandbox.
    """

    def __init__(
        self, signature: Signature, tools: tuple[Tool, ...], source: str, calls: int, seconds: float, output: int
    ) -> None:
        self.checks = {field.python_name: check_of(field, signature) for field in signature.outputs}
        self._limits = (seconds, output)
        made = dspy_signature(signature)
        super().__init__(made, tools=dspy_tools(tools, taken="submit"), max_predictor_calls=calls)
        if source:
            self._bind_code(source)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Return the prediction. The code gets the inputs as plain data."""
        try:
            return super().forward(**{name: plain(value) for name, value in inputs.items()})
        except CodeInterpreterError as error:
            raise PassedError(errors.HandlerError(f"the source of the program: {errors.text_of(error)}")) from error

    def _rebuild_bridge(self) -> None:
        self._bridge = _Runtime(self, self._sandbox, self._max_predictor_calls)

    def _sandbox(self) -> Any:
        run = current_run.get()
        assert run is not None
        try:
            return sandbox_factory(run, *self._limits, lowers=True)()
        except errors.NotAllowed as error:
            raise PassedError(error) from error

    def _baseline_src(self) -> str:
        # DSPy's baseline with tools is an RLM, whose code could create any predictor.
        source: str = super()._baseline_src()
        return source.replace("dspy.RLM(", "dspy.ReActV2(")


class _Runtime(BridgeRuntime):  # type: ignore[misc]  # DSPy is not typed
    def invocation(self, originals: dict[str, Any] | None = None) -> FacadeInvocation:
        context = self._flex._flex_ctx
        return _Invocation(
            context.context_names(), self._factory, self._max_predictor_calls, custom_types=context.custom_types()
        )

    def _tool_callables(self) -> dict[str, Any]:
        return {name: _called_by_name(tool) for name, tool in self._flex._flex_ctx.context_names().items()}

    def _to_prediction(self, fields: dict[str, Any]) -> dspy.Prediction:
        checks = self._flex.checks
        missing = [name for name in checks if name not in fields]
        if missing:
            raise CodeInterpreterError(f"it has not returned {', '.join(missing)}")
        try:
            return dspy.Prediction(**{name: check.value(fields[name], "result") for name, check in checks.items()})
        except errors.InvalidArgs as error:
            raise CodeInterpreterError(str(error)) from error


class _Invocation(FacadeInvocation):  # type: ignore[misc]  # DSPy is not typed
    """What code may do with `dspy`: create predictors whose signatures are read here, as DSPy would import types."""

    def install(self, interpreter: Any) -> None:
        self._sandbox = interpreter
        super().install(interpreter)

    def construct(self, kind: str, signature: Any, attr_name: str, kwargs: dict[str, Any] | None = None) -> str:
        """Create a predictor of the type `kind`, and return its handle. Raises CodeInterpreterError."""
        options = dict(kwargs or {})
        allowed = {"tools", "max_iters"} if kind.startswith("ReAct") else SANDBOX_LM_KWARGS - {"tools"}
        refused = [name for name in options if name not in allowed]
        if kind not in _KINDS or refused:
            raise CodeInterpreterError(f"dspy.{kind}{f' with {refused[0]}' if refused else ''} is not available")
        if "max_iters" in options:
            options["max_iters"] = min(int(options["max_iters"]), MOST_ITERATIONS)
        made = _signature(signature, self._custom_types or {})
        handle: str = super().construct(kind, made, attr_name, options)
        return handle

    def call(self, handle: str, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run a predictor. The end of the call of a host passes through the code."""
        guarded = self._sandbox.guarded(super().call)
        try:
            fields: dict[str, Any] = guarded(handle, inputs)
        except dspy.AdapterParseError as error:  # which ends the run like DSPy's errors of the model
            tag = f"[reply {self._calls}]"
            self._lm_error = (error, tag)
            raise CodeInterpreterError(f"{tag} {errors.text_of(error)}") from error
        return fields


def _called_by_name(tool: dspy.Tool) -> Any:
    return lambda **arguments: tool(**arguments)


def _signature(given: Any, types: dict[str, Any]) -> Any:
    """Return the signature that code has written as text. types: those of the program's fields, by their names."""
    marked = given if isinstance(given, dict) and given.get(SIGNATURE_MARKER) else {"signature": given}
    text, instructions = marked["signature"], marked.get("instructions")
    if not isinstance(text, str) or text.count("->") != 1 or not isinstance(instructions, str | None):
        raise CodeInterpreterError("a signature is a text like 'question: str -> answer: str'")
    fields: dict[str, Any] = {}
    sides = []
    for make, side in zip((dspy.InputField, dspy.OutputField), text.split("->"), strict=True):
        found = _fields(side, types)
        if found.keys() & fields.keys():
            raise CodeInterpreterError("an input and an output have the same name")
        fields |= {name: (kind, make()) for name, kind in found.items()}
        sides.append(", ".join(f"`{name}`" for name in found))
    return dspy.make_signature(fields, instructions or f"Given the fields {sides[0]}, produce the fields {sides[1]}.")


def _fields(side: str, types: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in _split(side):
        name, _, kind = map(str.strip, field.partition(":"))
        if not _NAME.fullmatch(name) or name in RESERVED or name in found:
            raise CodeInterpreterError(f"{name[:100]!r} cannot be the name of a field")
        found[name] = _type(kind, types)
    return found


def _split(side: str) -> list[str]:
    """Return the parts between commas that are not in brackets."""
    parts, depth = [""], 0
    for character in side:
        depth += (character in "[<(") - (character in "]>)")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _type(name: str, types: dict[str, Any]) -> Any:
    if name in types:
        return types[name]
    try:
        return parse_type(name or "str")
    except TypeNameError as error:
        raise CodeInterpreterError(str(error)) from None
