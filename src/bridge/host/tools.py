"""Python callables as tools: declare them to a worker, and call them for it."""

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
    """Raised if arguments of a tool are missing, unknown, or of the wrong type."""


class Tool:
    """A callable, its name, and the types of its arguments. Raises TypeError if it cannot be a tool.

    Keyword arguments that a functools.partial has filled in are not offered. can_await: whether async functions are
    accepted; `call` returns an awaitable for those. is_async: whether it is one.
    """

    kind = "tool"

    def __init__(self, function: Callable[..., Any], can_await: bool = False) -> None:
        self.function = function
        self.name = _name(function)
        body = body_of(function)
        self.is_async = inspect.iscoroutinefunction(body)
        if self.is_async and not can_await:
            raise TypeError(f"tool {self.name}: an async function cannot be a tool of this client; use bridge.aio")
        if inspect.isasyncgenfunction(body):
            raise TypeError(f"tool {self.name}: an async generator cannot be a tool")
        self.arguments: dict[str, Argument] = {}
        self._positional: list[str] = []
        fixed = function.keywords if isinstance(function, functools.partial) else {}
        for name, parameter in _signature(self.name, function).parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TypeError(f"tool {self.name}: {parameter} cannot be declared: each argument needs a name")
            if name in fixed:
                continue
            self.arguments[name] = Argument(self.name, parameter)
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional.append(name)

    @property
    def declaration(self) -> dict[str, Any]:
        """Return the tool's name, its docstring as `description`, and the JSON Schema of each argument as `args`."""
        args = {name: argument.schema for name, argument in self.arguments.items()}
        return {"name": self.name, "description": _docstring(self.function), "args": args}

    def call(self, given: dict[str, Any]) -> Any:
        """Convert the arguments to the annotated types, call the function, and return what it returns.

        Raises WrongArguments if they do not fit, and whatever the function raises.
        """
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
                break  # the remaining ones have defaults
            positional.append(values.pop(name))
        return self.function(*positional, **values)


def error_text(error: BaseException) -> str:
    """Return the text of an exception, even if its `__str__` fails, with the class name unless it is a BridgeError."""
    words = errors.words_of(error)
    if isinstance(error, errors.BridgeError):
        return words
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _name(function: Callable[..., Any]) -> str:
    inner = _without_partial(function)
    name = str(getattr(inner, "__name__", type(inner).__name__))
    if not callable(inner):
        raise TypeError(f"a tool must be a function or another callable, not {function!r}")
    if not name.isidentifier():
        raise TypeError(f"{name} cannot be the name of a tool; define the tool with `def`")
    return name


def _docstring(function: Callable[..., Any]) -> str:
    body = body_of(function)
    return inspect.getdoc(body) or inspect.getdoc(_without_partial(function)) or ""


def body_of(function: Callable[..., Any]) -> Any:
    """Return the function or method that a partial or a callable object calls."""
    inner = _without_partial(function)
    is_object = not hasattr(inner, "__name__") and hasattr(type(inner).__call__, "__code__")
    return type(inner).__call__ if is_object else inner


def _without_partial(function: Any) -> Any:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _signature(name: str, function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature, with string annotations evaluated. Raises TypeError."""
    try:
        try:
            return inspect.signature(function, eval_str=True)
        except NameError:  # the class may be local to the function that defines the tool
            return inspect.signature(function, eval_str=True, locals=_callers_names())
    except ValueError as error:
        raise TypeError(f"tool {name}: {error}") from error
    except NameError as error:
        raise TypeError(f"tool {name}: its annotations cannot be resolved: {error}") from error


def _callers_names() -> dict[str, Any]:
    """Return the local variables of all running functions; those of inner functions win."""
    names: dict[str, Any] = {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names
