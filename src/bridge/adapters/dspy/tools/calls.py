"""Calls of tools: checked, announced as events, and sent to the host or to an index of the session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapters.dspy.tools import DEFAULT_FOUND, SearchTool
from bridge.adapters.dspy.values.text_form import without_text_form
from bridge.security.redaction import first_line
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.tools import Tool
    from bridge.adapters.dspy.tools.schema import ToolSchema

MAX_ERROR = 300  # characters of an error that the model reads


def call_tool(tool: Tool, schema: ToolSchema, context: Context, arguments: dict[str, Any]) -> Any:
    """Call a tool. Return what the model reads: the tool's result, or one line that begins with "error:".

    With arguments that are missing, unknown or wrong it is not called. Raises CallEnded.
    """
    problem = schema.problem(arguments)
    if problem:
        return f"error: {tool.name} {problem}"
    context.emit("tool_call", {"name": tool.name, "args": arguments})
    try:
        with activity("stage", "execute_tool", tool=tool.name):
            result = _result(tool, context, arguments)
    except errors.BridgeError as error:
        result = f"error: {first_line(str(error), MAX_ERROR)}"
    unreadable = without_text_form(result, "result")
    if unreadable is not None:
        path, kind = unreadable
        result = f"error: {tool.name} returned what has no text form: {path} is {kind}"
    context.emit("tool_result", {"name": tool.name, "result": result})
    return result


def _result(tool: Tool, context: Context, arguments: dict[str, Any]) -> Any:
    if not isinstance(tool, SearchTool):
        args = {"name": tool.name, "args": arguments, "session_id": context.session.id}
        return context.call_host("call_tool", args)
    from bridge.adapters.dspy.retrieval.search import search  # loads numpy

    return search(context, tool.index_id, arguments["query"], int(arguments.get("k", DEFAULT_FOUND)))
