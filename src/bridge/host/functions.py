"""Functions of the host that a worker calls: models, metrics, rewards and embedders, and where all are found."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from bridge import errors
from bridge.host.tools import Tool, body_of
from bridge.wire.messages import Incoming

Named = Mapping[str, Callable[..., Any]]

NONE: Named = MappingProxyType({})

DEFAULT_SESSIONS = ("default", "anonymous")  # ids of the session of calls that name none, by the worker's mode

# By kind: the parameters that a function may have. A request has them as keys; what it lacks is None.
PARTS: dict[str, tuple[str, ...]] = {
    "model": ("messages", "settings", "tools", "tool_choice", "response_format", "stream"),
    "metric": ("inputs", "expected", "outputs", "trace"),
    "reward": ("inputs", "outputs"),
    "embedder": ("texts",),
}
KINDS = {"call_tool": "tool", **{f"call_{kind}": kind for kind in PARTS}}  # by the command that asks for one


class Function:
    """A model, metric, reward or embedder of the host: a callable with some of the parameters that its kind may have.

    A parameter `request` gets all of the request, as a map. Raises TypeError for other parameters without a default.
    can_await: whether async functions are accepted; `call` returns an awaitable or an async iterator for those.
    is_async: whether it is one.
    """

    def __init__(self, kind: str, name: str, function: Callable[..., Any], can_await: bool = False) -> None:
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"{kind}s: a name must be a text, not {name!r}")
        if not callable(function):
            raise TypeError(f"{kind} {name}: expected a function or another callable, not {function!r}")
        self.kind, self.name, self.function = kind, name, function
        body = body_of(function)
        self.is_async = inspect.iscoroutinefunction(body) or inspect.isasyncgenfunction(body)
        if self.is_async and not can_await:
            raise TypeError(f"{kind} {name}: an async function cannot be called by this client; use bridge.aio")
        parts = (*PARTS[kind], "session_id", "request")
        fixed = function.keywords if isinstance(function, functools.partial) else {}
        self._taken: dict[str, bool] = {}  # whether each has no default
        self._takes_all = False
        for parameter in _parameters(f"{kind} {name}", function):
            is_required = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_KEYWORD:
                self._takes_all = True
            elif parameter.name in parts and parameter.kind is not parameter.POSITIONAL_ONLY:
                if parameter.name not in fixed:
                    self._taken[parameter.name] = is_required
            elif is_required and parameter.kind is not parameter.VAR_POSITIONAL:
                known = ", ".join(parts)
                raise TypeError(
                    f"{kind} {name}: cannot fill the parameter {parameter.name!r}; by name there are {known}"
                )

    def call(self, request: dict[str, Any]) -> Any:
        """Call the function with the parts of the request that it takes, and return what it returns."""
        parts = {**request, "request": request}
        given = {name: parts.get(name) for name, is_required in self._taken.items() if is_required or name in parts}
        return self.function(**(request | given if self._takes_all else given))


AnyFunction = Tool | Function


def functions(
    models: Named, metrics: Named, rewards: Named, embedders: Named, *, can_await: bool = False
) -> list[Function]:
    """Return the functions of all kinds. Raises TypeError."""
    kinds = {"model": models, "metric": metrics, "reward": rewards, "embedder": embedders}
    for kind, named in kinds.items():
        if not isinstance(named, Mapping):
            raise TypeError(f"{kind}s must be a map of names to functions, not {named!r}")
    return [
        Function(kind, name, function, can_await) for kind, named in kinds.items() for name, function in named.items()
    ]


class Functions:
    """The functions of each session, by kind and name, tools included.

    A session has those of the default session, too, but prefers its own.
    """

    def __init__(self) -> None:
        self._known: dict[str, dict[tuple[str, str], AnyFunction]] = {}

    def __len__(self) -> int:
        return sum(len(known) for known in list(self._known.values()))

    def add(self, session_id: str | None, added: Iterable[AnyFunction]) -> None:
        """Add functions to a session (None: the default one). They replace those of the same kind and name."""
        known = self._known.setdefault(session_id or DEFAULT_SESSIONS[0], {})
        known.update(((each.kind, each.name), each) for each in added)

    def drop(self, session_id: str) -> None:
        """Forget the functions of a session."""
        self._known.pop(session_id, None)

    def find(self, request: Incoming) -> tuple[AnyFunction, dict[str, Any]]:
        """Return the function that a worker's request names, and what it is called with.

        Raises UnknownCommand and InvalidArgs for an invalid request.
        """
        kind = KINDS.get(request.command or "")
        if kind is None:
            raise errors.UnknownCommand(f"Unknown command: {request.command}")
        name = str(request.args.get("name", ""))
        sessions = (str(request.args.get("session_id", "")), *DEFAULT_SESSIONS)
        known = (self._known.get(session_id, {}) for session_id in sessions)
        found = next((each[kind, name] for each in known if (kind, name) in each), None)
        if found is None:
            raise errors.UnknownCommand(f"unknown {kind} {name!r}")
        if kind != "tool":
            return found, {key: value for key, value in request.args.items() if key != "name"}
        given = request.args.get("args", {})
        if not isinstance(given, dict):
            raise errors.InvalidArgs(f"the arguments of {name} must be a map, not {given!r}")
        return found, given


def _parameters(what: str, function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function).parameters.values()
    except ValueError as error:
        raise TypeError(f"{what}: {error}") from error


def is_stream(result: Any) -> bool:
    """Return whether a model has returned an iterator of the pieces of its reply."""
    return isinstance(result, Iterator | AsyncIterator)


class Pieces:
    """The reply of a model that arrives in pieces: texts, and maps of what else belongs to the reply, such as usage."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._rest: dict[str, Any] = {}

    def add(self, piece: Any) -> str:
        """Add a piece, and return its text. Raises TypeError for a piece that is neither a text nor a map."""
        if isinstance(piece, Mapping):
            self._rest.update(piece)
            return ""
        if not isinstance(piece, str):
            raise TypeError(f"a piece of a model's reply must be a text or a map, not {type(piece).__name__}")
        self._texts.append(piece)
        return piece

    def reply(self) -> dict[str, Any]:
        """Return the whole reply."""
        return {"text": "".join(self._texts), **self._rest}


def joined(pieces: Iterator[Any], announce: Callable[[str], object]) -> dict[str, Any]:
    """Return the reply of a model that comes in pieces. announce(text): called for each piece of the text."""
    whole = Pieces()
    try:
        for piece in pieces:
            announce(whole.add(piece))
    finally:
        if isinstance(pieces, Generator):
            pieces.close()
    return whole.reply()


async def joined_later(
    pieces: Iterator[Any] | AsyncIterator[Any], announce: Callable[[str], Awaitable[object]]
) -> dict[str, Any]:
    """Return the reply of a model that comes in pieces, as `joined` does."""
    whole = Pieces()
    try:
        if isinstance(pieces, Iterator):
            for piece in pieces:
                await announce(whole.add(piece))
        else:
            async for piece in pieces:
                await announce(whole.add(piece))
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()
    return whole.reply()
