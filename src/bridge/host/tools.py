"""Plain Python callables as tools: how they are declared to a worker, and how it calls them."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from bridge import errors

Callables = Iterable[Callable[..., Any]]


class Tools:
    """The callables of each session, by the name of the function."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Callable[..., Any]] = {}

    def add(self, session_id: str, callables: Callables) -> None:
        """Know these as the tools of the session from now on."""
        for function in callables:
            self._known[session_id, function.__name__] = function

    def call(self, args: dict[str, Any]) -> Any:
        """Call the tool that a worker's `call_tool` names. Raises what it raises."""
        name = args.get("name", "")
        function = self._known.get((args.get("session_id", ""), name))
        if function is None:
            raise errors.UnknownCommand(f"no tool {name!r}")
        return function(**args.get("args", {}))


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """name, description (the docstring's first paragraph), args: JSON Schema of each parameter,
    with `default` where it has one. Raises TypeError for parameters that cannot be named."""
    hints = typing.get_type_hints(function)
    args = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"tool {function.__name__}: {parameter} has no name of its own")
        schema = msgspec.json.schema(hints.get(parameter.name, Any))
        if parameter.default is not parameter.empty:
            schema["default"] = msgspec.to_builtins(parameter.default)
        args[parameter.name] = schema
    description = (inspect.getdoc(function) or "").partition("\n\n")[0]
    return {"name": function.__name__, "description": description, "args": args}
