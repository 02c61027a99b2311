"""Tools of the host: declared for a session, called by programs through the pipe.

Nothing here imports DSPy: run.py makes a DSPy tool of each.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapter import Ignored
from bridge.adapters.dspy.prompt_values import without_text_form
from bridge.adapters.dspy.tool_schema import ToolSchema, with_maps
from bridge.security.redaction import first_line
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context

MAX_NAME = 200  # characters of a tool's name
MAX_ERROR = 300  # characters of what the model is told of an error


class ToolDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A tool as hosts send it; what a server of the Model Context Protocol lists is one, too.

    args: JSON Schema of each argument by name, or one schema of the object that holds them all.
    inputSchema: the same under the protocol's name.
    """

    name: str
    description: str | None = None
    args: dict[str, Any] | None = None
    input_schema: dict[str, Any] | None = msgspec.field(name="inputSchema", default=None)
    output_schema: Ignored = msgspec.field(name="outputSchema", default=None)
    title: Ignored = None
    annotations: Ignored = None
    icons: Ignored = None
    execution: Ignored = None
    meta: Ignored = msgspec.field(name="_meta", default=None)

    def tool(self, path: str) -> Tool:
        """Return the tool that this defines, at `path` of the args. Raises InvalidArgs."""
        if not self.name.strip() or len(self.name) > MAX_NAME:
            raise errors.InvalidArgs(f"{path}.name: a tool's name has 1 to {MAX_NAME} characters", path=f"{path}.name")
        if self.args and self.input_schema is not None:
            raise errors.InvalidArgs(f"{path}: args and inputSchema are the same: send one of them", path=path)
        place = f"{path}.args" if self.input_schema is None else f"{path}.inputSchema"
        args = with_maps(self.args or self.input_schema or {})
        tool = Tool(self.name, self.description or "", args)
        unreadable = without_text_form(tool.args, place)
        if unreadable is not None:
            where, kind = unreadable
            raise errors.InvalidArgs(f"{where}: {kind} has no text form for a prompt", path=where)
        ToolSchema.of(tool.args).check(place)
        try:
            msgspec.msgpack.encode(tool.args)
        except (OverflowError, TypeError, ValueError) as error:
            raise errors.InvalidArgs(f"{place}: not a JSON Schema: {error}", path=place) from None
        return tool


class Tool(msgspec.Struct, frozen=True):
    """name: the host's. args: as in ToolDefinition."""

    name: str
    description: str = ""
    args: dict[str, Any] = {}


def checked(definitions: list[ToolDefinition]) -> dict[str, Tool]:
    """Return the tools by name. Raises InvalidArgs for wrong names and schemas, and for a name
    twice."""
    found: dict[str, Tool] = {}
    for index, definition in enumerate(definitions):
        path = f"args.tools[{index}]"
        tool = definition.tool(path)
        if tool.name in found:
            raise errors.InvalidArgs(f"{path}.name: a second tool {tool.name!r}", path=path)
        found[tool.name] = tool
    return found


def model_names(tools: Iterable[Tool], taken: Iterable[str]) -> list[str]:
    """Return the name by which a model calls each tool: the host's own where providers accept it
    and it is not among `taken`, else one like it."""
    found: list[str] = []
    names = [*tools]
    used = {*taken, *(tool.name for tool in names if _is_accepted(tool.name))}
    for tool in names:
        name = tool.name
        if not _is_accepted(name) or name in taken:
            stem = "".join(char if _is_accepted(char) else "_" for char in name)[:50]
            name, count = stem, 1
            while name in used:
                count += 1
                name = f"{stem}_{count}"
        used.add(name)
        found.append(name)
    return found


def _is_accepted(name: str) -> bool:
    # What OpenAI, Anthropic and Gemini all take.
    word = name.replace("_", "").replace("-", "")
    return 0 < len(name) <= 64 and name.isascii() and (word.isalnum() or not word)


def call(tool: Tool, schema: ToolSchema, context: Context, arguments: dict[str, Any]) -> Any:
    """Call the host's tool. Returns what the language model gets to see: its result, or one line on
    what went wrong.

    Arguments that are missing, unknown or wrong do not leave the worker. Raises CallEnded.
    """
    wrong = schema.wrong(arguments)
    if wrong:
        return f"error: {tool.name} {wrong}"
    context.emit("tool_call", {"name": tool.name, "args": arguments})
    args = {"name": tool.name, "args": arguments, "session_id": context.session.id}
    try:
        with activity("stage", "execute_tool", tool=tool.name):
            result = context.call_host("call_tool", args)
    except errors.BridgeError as error:
        result = f"error: {first_line(str(error), MAX_ERROR)}"
    unreadable = without_text_form(result, "result")
    if unreadable is not None:
        place, kind = unreadable
        result = f"error: {tool.name} returned what has no text form: {place} is {kind}"
    context.emit("tool_result", {"name": tool.name, "result": result})
    return result
