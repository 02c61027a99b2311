"""Checks of the tools that hosts declare and that documents contain."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bridge import errors
from bridge.adapters.dspy.tools import Tool
from bridge.adapters.dspy.tools.schema import ToolSchema
from bridge.adapters.dspy.values.text_form import without_text_form

MAX_NAME = 200  # characters of a tool's name


def check_tool(tool: Tool, path: str, schema_path: str) -> None:
    """Raise InvalidArgs if the name or the schema of `tool` is wrong. path: of it in the args; schema_path: of args."""
    if not tool.name.strip() or len(tool.name) > MAX_NAME:
        raise errors.InvalidArgs(f"{path}.name: a tool's name has 1 to {MAX_NAME} characters", path=f"{path}.name")
    unreadable = without_text_form(tool.args, schema_path)
    if unreadable is not None:
        where, kind = unreadable
        raise errors.InvalidArgs(f"{where}: {kind} has no text form for a prompt", path=where)
    ToolSchema.of(tool.args).check(schema_path)
    try:
        msgspec.msgpack.encode(tool.args)
    except (OverflowError, TypeError, ValueError) as error:
        raise errors.InvalidArgs(f"{schema_path}: not a JSON Schema: {error}", path=schema_path) from None


def check_tools(tools: Sequence[Tool], path: str) -> None:
    """Raise InvalidArgs if a name or a schema of `tools` is wrong, or two have the same name. path: in the args."""
    for index, tool in enumerate(tools):
        check_tool(tool, f"{path}[{index}]", f"{path}[{index}].args")
    check_names(tools, path)


def check_names(tools: Sequence[Tool], path: str) -> None:
    """Raise InvalidArgs if two tools have the same name. path: of the tools in the args."""
    names = set()
    for index, tool in enumerate(tools):
        if tool.name in names:
            where = f"{path}[{index}]"
            raise errors.InvalidArgs(f"{where}.name: a second tool {tool.name!r}", path=where)
        names.add(tool.name)
