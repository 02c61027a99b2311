"""An adapter that returns, sends and raises values at or beyond the limits of the wire."""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
from collections.abc import Callable
from typing import Any

import msgspec
import numpy

from bridge import Adapter, errors

adapter = Adapter("extremes")


@dataclasses.dataclass
class Link:
    next: Any


class Node(msgspec.Struct):
    next: Any


class Number(enum.Enum):
    NOT_ONE = float("nan")


class Unreadable(Exception):
    """An exception whose text cannot be read."""

    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def nested(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def cyclic(value: Any, put: Callable[[Any, Any], None]) -> Any:
    put(value, value)
    return value


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "lists": lambda value: [value],
    "maps": lambda value: {"a": value},
    "tuples": lambda value: (value,),
    "sets": lambda value: frozenset([value]),
    "dataclasses": Link,
    "structs": Node,
    "mixed": lambda value: {"a": [(Link(value), numpy.zeros(1))]},
}
# Functions that make each value when it is needed, by name.
TOO_DEEP: dict[str, Callable[[], Any]] = {
    **{
        f"{depth} {name}": lambda depth=depth, wrap=wrap: nested(depth, wrap)
        for depth in (1100, 100_000)
        for name, wrap in WRAPPERS.items()
    },
    "a cyclic list": lambda: cyclic([], list.append),
    "a cyclic map": lambda: cyclic({}, lambda value, inner: value.update(a=inner)),
    "a cyclic struct": lambda: cyclic(Node(None), lambda node, inner: setattr(node, "next", inner)),
    "a cyclic dataclass": lambda: cyclic(Link(None), lambda link, inner: setattr(link, "next", inner)),
    "a cycle with an array in it": lambda: cyclic([numpy.zeros(9000)], list.append),
}
NOT_FINITE: dict[str, Callable[[], Any]] = {
    "a float": lambda: float("inf"),
    "a nested one": lambda: {"a": [1.0, ({"b": float("nan")},)]},
    "a numpy scalar": lambda: {"a": numpy.float64("nan")},
    "a short numpy scalar": lambda: {"a": [numpy.float32("-inf")]},
    "one in a dataclass": lambda: Link([float("nan")]),
    "one in a struct": lambda: Node([float("nan")]),
    "one in a set": lambda: {float("nan")},
    "an enum": lambda: [Number.NOT_ONE],
    "a key": lambda: {float("nan"): 1},
    "one below a huge key": lambda: {"k" * 100_000: float("nan")},
}


def released() -> memoryview:
    view = memoryview(b"abc")
    view.release()
    return view


NO_BYTES: dict[str, Callable[[], Any]] = {
    "strided": lambda: memoryview(b"abcdef")[::2],
    "long and strided": lambda: memoryview(bytes(100_000))[::2],
    "by columns": lambda: memoryview(numpy.asfortranarray(numpy.ones((3, 4)))),
    "empty and strided": lambda: memoryview(b"abcdef")[::2][:0],
    "released": released,
}
TOO_LONG: dict[str, Callable[[], Any]] = {
    "repeated": lambda: numpy.broadcast_to(numpy.zeros(1), (1 << 40,)),
    "repeated, in a list": lambda: [1, (numpy.broadcast_to(numpy.zeros(1, ">f8"), (1 << 40,)),)],
    "beyond 2^63": lambda: numpy.broadcast_to(numpy.zeros(1, "u1"), ((1 << 62) + 1,)),
}
VALUES = {**TOO_LONG, **TOO_DEEP, **NOT_FINITE, **NO_BYTES, "an empty Raw": msgspec.Raw}
DETAILS: dict[str, Any] = {
    "an object": object(),
    "a huge integer": 10**5000,
    "a lone surrogate": "\ud800",
    "an infinity": float("inf"),
    "a lone surrogate as a key": {"\ud800": 1},
    "a long text": "x" * 1_000_000,
    **dict.fromkeys(("1100 lists", "100000 maps", "a cyclic list")),
}


class Named(msgspec.Struct):
    name: str


class Size(msgspec.Struct):
    size: int


def on_both_lanes(name: str):
    def declare(handler):
        adapter.command(name, Named, lane="inline")(handler)
        adapter.command(f"{name}_on_thread", Named)(handler)
        return handler

    return declare


@on_both_lanes("result")
def result(args: Named, context: Any) -> Any:
    return {"value": VALUES[args.name]()}


@on_both_lanes("event")
def event(args: Named, context: Any) -> None:
    context.emit("here", {"value": VALUES[args.name]()})


@adapter.command("ask", Named)
def ask(args: Named, context: Any) -> None:
    context.call_host("call_tool", {"name": "t", "args": {"value": VALUES[args.name]()}})


@on_both_lanes("fail")
def fail(args: Named, context: Any) -> None:
    detail = TOO_DEEP[args.name]() if args.name in TOO_DEEP else DETAILS[args.name]
    raise errors.QuotaExceeded("enough", what=detail)


@adapter.command("raise_unreadable", lane="inline")
def raise_unreadable(args: None, context: Any) -> None:
    raise Unreadable


class Hiding(Exception):
    """An exception whose traceback cannot be read."""

    @property
    def __traceback__(self) -> Any:
        raise ValueError("no traceback")


class Groundless(Exception):
    """An exception whose cause cannot be read."""

    @property
    def __cause__(self) -> Any:
        raise ValueError("no cause")


UNPRINTABLE: dict[str, Callable[[], Exception]] = {
    "hiding": Hiding,
    "groundless": Groundless,
    "on a huge line": lambda: SyntaxError("m", ("f", 10**5000, 1, "text")),
}


@on_both_lanes("raise_unprintable")
def raise_unprintable(args: Named, context: Any) -> None:
    raise UNPRINTABLE[args.name]()


@on_both_lanes("log_unprintable")
def log_unprintable(args: Named, context: Any) -> None:
    try:
        raise UNPRINTABLE[args.name]()
    except Exception:
        logging.getLogger("extremes").exception("it is logged")


@on_both_lanes("fork_unprintable")
def fork_unprintable(args: Named, context: Any) -> int:
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    raise UNPRINTABLE[args.name]()


@adapter.command("raise_number", lane="inline")
def raise_number(args: None, context: Any) -> None:
    raise KeyError(10**5000)


@adapter.command("raise_text", lane="inline")
def raise_text(args: None, context: Any) -> None:
    raise errors.LMError("half \ud83d of it")


@adapter.command("raise_long", Size, lane="inline")
def raise_long(args: Size, context: Any) -> None:
    raise errors.LMError("x" * args.size, more="y" * args.size)


@adapter.command("raise_huge", Size, lane="inline")
def raise_huge(args: Size, context: Any) -> None:
    raise Exception("x" * args.size)


@adapter.command("log_long", Size, lane="inline")
def log_long(args: Size, context: Any) -> None:
    logging.getLogger("extremes").warning("\0" * args.size)


@adapter.command("anything", dict[str, Any], lane="inline")
def anything(args: dict[str, Any], context: Any) -> int:
    return len(args)


@adapter.command("long_text", Size, lane="inline")
def long_text(args: Size, context: Any) -> str:
    return "x" * args.size


@adapter.command("large_event", Size)
def large_event(args: Size, context: Any) -> None:
    context.emit("e" * args.size, "x" * args.size)


@adapter.command("large_ask", Size)
def large_ask(args: Size, context: Any) -> None:
    context.call_host("call_tool", {"name": "t", "args": {"text": "x" * args.size}})


@adapter.command("shared", lane="inline")
def shared(args: None, context: Any) -> Any:
    """Return 60 levels of lists, each of which contains the next one twice."""
    return nested(60, lambda value: [value, value])


@adapter.command("recursion_limit", lane="inline")
def recursion_limit(args: None, context: Any) -> int:
    """Return how deeply calls of a Python function can be nested on this thread."""

    def depth(level: int) -> int:
        try:
            return depth(level + 1)
        except RecursionError:
            return level

    return depth(0)


@adapter.command("register_tools", dict[str, Any], lane="inline")
def register_tools(args: dict[str, Any], context: Any) -> dict[str, str]:
    return {"session_id": "s"}


@adapter.command("use_tool", Named)
def use_tool(args: Named, context: Any) -> Any:
    call = {"name": "tool", "session_id": "s", "args": {"name": args.name}}
    return context.call_host("call_tool", call)
