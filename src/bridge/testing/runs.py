"""Runs of programs without a model: the checks of a real run, its events and its tools, and made-up outputs."""

from __future__ import annotations

import re
import time
import zlib
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.chosen_model import configured
from bridge.adapters.dspy.modules import DEFAULT_ITERATIONS, module_type
from bridge.adapters.dspy.setup import Setup
from bridge.adapters.dspy.signatures import Field
from bridge.adapters.dspy.state import Program
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.tools.calls import call_tool
from bridge.adapters.dspy.tools.schema import ToolSchema
from bridge.adapters.dspy.values.checks import Inputs, check_of
from bridge.adapters.dspy.values.inputs import plain
from bridge.testing.made_up import argument_of, value_of
from bridge.testing.script import Script

if TYPE_CHECKING:
    from bridge._dispatch import Context

_encode = msgspec.json.Encoder(enc_hook=repr, order="sorted").encode
_PIECE = re.compile(r"\s*\S+|\s+$")  # of a text that is streamed


def run(script: Script, setup: Setup, inputs: dict[str, Any], context: Context, path: str) -> dict[str, Any]:
    """Run a program, with the parameters, the result and the errors of `execute` in the adapter's `run`."""
    started = time.monotonic()
    program = setup.program
    owner = program.id if program.is_registered else "the signature"
    Inputs(program.signature, owner).arguments(inputs, path)
    name = configured(setup.models)[0].settings.model
    context.count("lm_calls")
    # Those of a module of the operator tell its predictors and their calls apart.
    part = {"predictor": "self", "call": 1} if program.is_registered else {}
    context.emit("status", {"status": "lm_call", "model": name, **part})
    context.wait(script.delay(context.command.name))
    script.raise_error(context.command.name)
    _call_tools(script, program, inputs, context, setup.tools or program.definition.tools)
    outputs = dict(_outputs(script, program, inputs))
    for field, value in outputs.items():
        for piece in _PIECE.findall(value if isinstance(value, str) else msgspec.json.encode(value).decode()):
            context.emit("chunk", {"field": field, "text": piece, **part})
    program.executed()
    return {
        "program_id": program.id,
        "outputs": outputs,
        "execution_time": round(time.monotonic() - started, 6),
        "model": name,
    }


def _call_tools(
    script: Script, program: Program, inputs: dict[str, Any], context: Context, given: tuple[Tool, ...]
) -> None:
    """Call the tools as the test has set; if it has not, a program of type react calls each of them once."""
    takes_tools = not program.is_registered and module_type(program.definition).takes_tools
    if not (takes_tools or program.is_registered):
        return
    tools = {tool.name: tool for tool in given}
    calls = script.tool_calls(program.id)
    if calls is None:
        calls = [(tool.name, _arguments(tool, inputs)) for tool in tools.values()] if takes_tools else []
    for name, arguments in calls[: program.definition.max_iters or DEFAULT_ITERATIONS]:
        if name not in tools:
            raise errors.LMError(f"the test has set a call of the tool {name!r}; known: {', '.join(tools)}")
        context.check()
        call_tool(tools[name], ToolSchema.of(tools[name].args), context, arguments)


def _arguments(tool: Tool, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the required arguments: inputs of the same names if they fit, made-up values otherwise."""
    schema = ToolSchema.of(tool.args)
    made_up = {name: argument_of(schema.properties[name], name) for name in schema.properties.keys() & schema.required}
    given = made_up | {name: inputs[name] for name in made_up if name in inputs}
    return made_up if schema.problem(given) else given


def _outputs(script: Script, program: Program, inputs: dict[str, Any]) -> list[tuple[str, Any]]:
    signature = program.signature
    outputs = [(field.name, _value(script, program, field, inputs)) for field in signature.outputs]
    added = _added(program)
    if added and added not in dict(outputs):
        given = script.output(program.id, added, inputs) or [_made_up(added, str, inputs)]
        outputs.insert(0, (added, given[0]))
    return outputs


def _added(program: Program) -> str:
    """Return the name of the output that the program's module adds, or ""."""
    definition = program.definition
    if program.is_registered:
        return ""
    if definition.program_type == "multi_chain_comparison":
        return "rationale"
    return "reasoning" if module_type(definition).has_reasoning else ""


def _value(script: Script, program: Program, field: Field, inputs: dict[str, Any]) -> Any:
    """Return the value of an output. Raises LMError, as for a model, if what the test has set is not of its type."""
    for value in script.output(program.id, field.name, inputs):
        try:
            return plain(check_of(field, program.signature).value(value))
        except errors.InvalidArgs as error:
            reason = error.message.partition(": ")[2]
            raise errors.LMError(
                f"the value that the test has set for {field.name!r}: {reason}",
                lm_code="adapter_parse_error",
                field=field.name,
            ) from None
    if field.schema:
        return argument_of(msgspec.json.decode(field.schema), field.name)
    return _made_up(field.name, field.type, inputs)


def _made_up(name: str, type: Any, inputs: dict[str, Any]) -> Any:
    seed = zlib.crc32(_encode([name, inputs])) % 1000
    return plain(value_of(type, name, seed))
