"""Tools of the host: declared for a session, called by programs through the pipe.

Nothing here imports DSPy: runtime.py makes a DSPy tool of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.activity import around
from bridge.adapter import Ignored

if TYPE_CHECKING:
    from bridge._dispatch import Context


class ToolDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A tool as hosts send it; what a server of the Model Context Protocol lists is one, too."""

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

    def tool(self) -> Tool:
        """The tool that this defines."""
        args = self.input_schema if self.args is None else self.args
        return Tool(self.name, self.description or "", args or {})


class Tool(msgspec.Struct, frozen=True):
    """name: a word. args: JSON Schema of each argument by name, or one object schema of all."""

    name: str
    description: str = ""
    args: dict[str, Any] = {}

    @property
    def properties(self) -> dict[str, Any]:
        """The schema of each argument."""
        whole = self.args.get("properties")
        return whole if isinstance(whole, dict) else self.args

    @property
    def required(self) -> set[str]:
        """The arguments that a call must have: those listed, or all without a default."""
        listed = self.args.get("required")
        if isinstance(self.args.get("properties"), dict):
            return set(listed) if isinstance(listed, list) else set()
        return {
            name
            for name, schema in self.args.items()
            if not (isinstance(schema, dict) and "default" in schema)
        }


def checked(definitions: list[ToolDefinition]) -> dict[str, Tool]:
    """The tools by name. Raises InvalidArgs for names that are taken, twice there, or no words."""
    found: dict[str, Tool] = {}
    for index, tool in enumerate(each.tool() for each in definitions):
        path = f"args.tools[{index}]"
        if not tool.name.isidentifier() or tool.name in ("finish", "submit"):
            raise errors.InvalidArgs(f"{path}.name: {tool.name!r} cannot name a tool", path=path)
        if tool.name in found:
            raise errors.InvalidArgs(f"{path}.name: a second tool {tool.name!r}", path=path)
        if not all(isinstance(schema, dict) for schema in tool.properties.values()):
            raise errors.InvalidArgs(f"{path}.args: not a JSON Schema for each argument", path=path)
        found[tool.name] = tool
    return found


def call(tool: Tool, context: Context, arguments: dict[str, Any]) -> Any:
    """What the tool says, for the language model: its result, or one line on what went wrong.

    Missing and unknown arguments do not leave the worker. Raises CallEnded.
    """
    wrong = _wrong(tool, arguments)
    if wrong:
        return f"error: {wrong}"
    context.emit("tool_call", {"name": tool.name, "args": arguments})
    args = {"name": tool.name, "args": arguments, "session_id": context.session.id}
    try:
        with around("stage", "execute_tool", tool=tool.name):
            result = context.call_host("call_tool", args)
    except errors.BridgeError as error:
        result = f"error: {str(error).partition(chr(10))[0][:300]}"
    context.emit("tool_result", {"name": tool.name, "result": result})
    return result


def _wrong(tool: Tool, arguments: dict[str, Any]) -> str:
    unknown = [name for name in arguments if name not in tool.properties]
    missing = sorted(tool.required - arguments.keys())
    if unknown:
        return f"{tool.name} has no argument {', '.join(unknown)}"
    if missing:
        return f"{tool.name} needs the argument {', '.join(missing)}"
    return ""
