"""Calls of the host's tools: checked, announced as events, and sent to the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapters.dspy.values.text_form import without_text_form
from bridge.security.redaction import first_line
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.tools import Tool
    from bridge.adapters.dspy.tools.schema import ToolSchema

MAX_ERROR = 300  # characters of an error that the model reads


def call_tool(tool: Tool, schema: ToolSchema, context: Context, arguments: dict[str, Any]) -> Any:
    """Call the host's tool. Return what the model reads: the tool's result, or one line that begins with "error:".

    Arguments that are missing, unknown or wrong are not sent to the host. Raises CallEnded.
    """
    problem = schema.problem(arguments)
    if problem:
        return f"error: {tool.name} {problem}"
    context.emit("tool_call", {"name": tool.name, "args": arguments})
    args = {"name": tool.name, "args": arguments, "session_id": context.session.id}
    try:
        with activity("stage", "execute_tool", tool=tool.name):
            result = context.call_host("call_tool", args)
    except errors.BridgeError as error:
        result = f"error: {first_line(str(error), MAX_ERROR)}"
    unreadable = without_text_form(result, "result")
    if unreadable is not None:
        path, kind = unreadable
        result = f"error: {tool.name} returned what has no text form: {path} is {kind}"
    context.emit("tool_result", {"name": tool.name, "result": result})
    return result
