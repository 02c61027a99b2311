"""DSPy's tools for the tools of the host: each call of a model is sent to the host."""

from __future__ import annotations

from typing import Any

import dspy

from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.tools import Tool, model_names
from bridge.adapters.dspy.tools.calls import call_tool
from bridge.adapters.dspy.tools.schema import ToolSchema
from bridge.adapters.dspy.values.inputs import plain


class HostTool(dspy.Tool):  # type: ignore[misc]  # DSPy is not typed
    """A tool whose arguments may have any names.

    The parameters of `dspy.Tool` would clash with some of them, and it answers wrong arguments with a traceback.
    """

    def __call__(self, /, **arguments: Any) -> Any:
        return self.func(arguments)

    async def acall(self, /, **arguments: Any) -> Any:
        return self(**arguments)


def dspy_tools(tools: tuple[Tool, ...], taken: str = "finish") -> list[HostTool]:
    """Return a DSPy tool for each of the host's tools. taken: the name of the tool that DSPy's module adds."""
    names = model_names(tools, (taken,))
    return [_dspy_tool(tool, name) for tool, name in zip(tools, names, strict=True)]


def host_tools() -> list[dspy.Tool]:
    """Return the host's tools of the session for which a module runs. Call this in `forward`.

    A call of a tool returns what the host's function returns, or a text that begins with "error:". Raises RuntimeError
    outside of a run.
    """
    run = current_run.get()
    if run is None:
        raise RuntimeError("host_tools is called while a module runs, as in forward: each session has its own tools")
    return list(dspy_tools(run.tools))


def _dspy_tool(tool: Tool, name: str) -> HostTool:
    schema = ToolSchema.of(tool.args)

    def call(arguments: dict[str, Any]) -> Any:
        run = current_run.get()
        if run is None:
            raise RuntimeError(f"{tool.name} was called outside of a run")
        run.check()
        try:
            return call_tool(tool, schema, run.context, plain(arguments))
        except Exception as error:  # DSPy would show the model its traceback
            raise PassedError(error) from error

    description = tool.description
    if name != tool.name:
        description = f"{tool.name}: {description}" if description else tool.name
    return HostTool(
        call,
        name=name,
        desc=description,
        args=schema.properties,
        arg_types=dict.fromkeys(schema.properties, Any),
    )
