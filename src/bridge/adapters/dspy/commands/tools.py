"""The command that declares the host's tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapter import Ignored
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.tools import Tool

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.state import State


class ToolDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A tool as hosts send it, or as a server of the Model Context Protocol lists it.

    args: the JSON Schema of each argument by name, or one schema of the object of all arguments. inputSchema: what the
    protocol calls args.
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
        """Return the tool that this defines. Raises InvalidArgs. path: of this in the args."""
        from bridge.adapters.dspy.tools.checks import check_tool
        from bridge.adapters.dspy.tools.json_schema import with_maps

        if self.args and self.input_schema is not None:
            raise errors.InvalidArgs(f"{path}: args and inputSchema mean the same: send only one of them", path=path)
        schema_path = f"{path}.args" if self.input_schema is None else f"{path}.inputSchema"
        tool = Tool(self.name, self.description or "", with_maps(self.args or self.input_schema or {}))
        check_tool(tool, path, schema_path)
        return tool


class RegisterToolsArgs(msgspec.Struct):
    """The args of register_tools.

    tools: added to the session's tools; each replaces one of the same name, but not in programs that exist. replace:
    remove the session's other tools.
    """

    tools: list[ToolDefinition]
    replace: bool = False
    session_id: str | None = None


@adapter.command("register_tools", RegisterToolsArgs, lane="session", idempotent=True)
def register_tools(args: RegisterToolsArgs, context: Context) -> dict[str, Any]:
    """Declare the host's tools for the session's programs, which call them as `call_tool`."""
    state: State = context.session.state
    before, given = state.tools, _tools_of(args.tools, context)
    state.set_tools(given if args.replace else before | given)
    return {
        "status": "registered",
        "session_id": context.session.id,
        "tools": list(state.tools),
        "added": [name for name in given if name not in before],
        "replaced": [name for name in given if name in before],
        "removed": [name for name in before if name not in state.tools],
    }


def _tools_of(definitions: list[ToolDefinition], context: Context) -> dict[str, Tool]:
    """Return the tools by name. Raises InvalidArgs for wrong or repeated names, and for wrong schemas."""
    from bridge.adapters.dspy.tools.checks import check_names

    tools = []
    for index, definition in enumerate(definitions):
        context.check()  # many large schemas take seconds
        tools.append(definition.tool(f"args.tools[{index}]"))
    check_names(tools, "args.tools")
    return {tool.name: tool for tool in tools}
