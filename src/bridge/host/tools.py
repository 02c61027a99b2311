"""Python callables as tools: how they are declared to a worker, and how it calls them."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

from bridge import errors
from bridge.host.arguments import Argument

Callables = Iterable[Callable[..., Any]]


class WrongArguments(errors.InvalidArgs):
    """The arguments of a tool are missing, unknown, or of the wrong type."""


class Tool:
    """A callable, its name, and the types of its arguments. Raises TypeError for what is no tool.

    Arguments that a functools.partial has given by name are not offered.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = _name(function)
        if _is_async(function):
            raise TypeError(f"tool {self.name}: async functions cannot be tools; give a plain one")
        self.arguments: dict[str, Argument] = {}
        self._positional: list[str] = []
        fixed = function.keywords if isinstance(function, functools.partial) else {}
        for name, parameter in _signature(self.name, function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"tool {self.name}: {parameter} has no name of its own")
            if name in fixed:
                continue
            self.arguments[name] = Argument(self.name, parameter)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional.append(name)

    @property
    def declaration(self) -> dict[str, Any]:
        """name, description (the docstring), args: JSON Schema of each argument, with `default`
        where it has one."""
        args = {name: argument.schema for name, argument in self.arguments.items()}
        return {"name": self.name, "description": _docstring(self.function), "args": args}

    def call(self, given: dict[str, Any]) -> Any:
        """Call the function with arguments as they came, converted. Raises WrongArguments for
        those that do not fit, what the function raises."""
        problems = [
            f"unknown argument {name!r}; known: {', '.join(self.arguments) or 'none'}"
            for name in given
            if name not in self.arguments
        ]
        values: dict[str, Any] = {}
        for name, argument in self.arguments.items():
            if name in given:
                values[name], problem = argument.convert(given[name])
                problems += problem
            elif argument.is_required:
                problems.append(f"argument {name!r} is missing")
        if problems:
            raise WrongArguments("; ".join(problems))
        positional = []
        for name in self._positional:
            if name not in values:
                break  # the rest of them have defaults
            positional.append(values.pop(name))
        return self.function(*positional, **values)


class Tools:
    """The tools of each session, by their names."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Tool] = {}

    def add(self, session_id: str, tools: Iterable[Tool]) -> None:
        """Know these as the tools of the session from now on."""
        for tool in tools:
            self._known[session_id, tool.name] = tool

    def call(self, args: dict[str, Any]) -> Any:
        """Call the tool that a worker's `call_tool` names. Raises what it raises."""
        name, given = args.get("name", ""), args.get("args", {})
        tool = self._known.get((str(args.get("session_id", "")), str(name)))
        if tool is None:
            raise errors.UnknownCommand(f"no tool {name!r}")
        if not isinstance(given, dict):
            raise errors.InvalidArgs(f"the arguments of {name} are a map, not {given!r}")
        return tool.call(given)


def error_text(error: BaseException) -> str:
    """Return the words of any exception, also of one that fails to say them."""
    words = errors.words_of(error)
    if isinstance(error, errors.BridgeError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _name(function: Callable[..., Any]) -> str:
    inner = _without_partial(function)
    name = str(getattr(inner, "__name__", type(inner).__name__))
    if not callable(inner):
        raise TypeError(f"a tool is a function or another callable, not {function!r}")
    if not name.isidentifier():
        raise TypeError(f"{name} is no name for a tool; define it with `def`")
    return name


def _is_async(function: Callable[..., Any]) -> bool:
    body = _body(function)
    return inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body)


def _docstring(function: Callable[..., Any]) -> str:
    body = _body(function)
    return inspect.getdoc(body) or inspect.getdoc(_without_partial(function)) or ""


def _body(function: Callable[..., Any]) -> Any:
    """The function or method that is run in the end."""
    inner = _without_partial(function)
    is_object = not hasattr(inner, "__name__") and hasattr(type(inner).__call__, "__code__")
    return type(inner).__call__ if is_object else inner


def _without_partial(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _signature(name: str, function: Callable[..., Any]) -> inspect.Signature:
    """The signature, with annotations that are text evaluated. Raises TypeError."""
    try:
        try:
            return inspect.signature(function, eval_str=True)
        except NameError:  # of a class that is defined where the tool is
            return inspect.signature(function, eval_str=True, locals=_callers_names())
    except ValueError as error:
        raise TypeError(f"tool {name}: {error}") from error
    except NameError as error:
        raise TypeError(f"tool {name}: its annotations do not resolve: {error}") from error


def _callers_names() -> dict[str, Any]:
    """The local names of all functions that are running, the innermost ones first."""
    names: dict[str, Any] = {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names
