"""The commands of pool_workers, and some that call the host, take arrays, fail with details, and leave traces."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy

from bridge import Unchecked, array, errors
from pool_workers import Text
from pool_workers import adapter as pool_workers

adapter = pool_workers.extended("node_workers")


class Asked(msgspec.Struct):
    kind: str
    name: str
    args: dict[str, Any] = {}


class Line(msgspec.Struct):
    path: str
    line: str


class Numbers(msgspec.Struct):
    array: Annotated[numpy.ndarray, array("s64", None)]


@adapter.command("ask_host", Asked, lane="worker")
def ask_host(args: Asked, context: Any):
    """Call a function of the host, and return its result."""
    parts = {"args": args.args} if args.kind == "tool" else args.args
    request = {"name": args.name, "session_id": "default", **parts}
    if not args.args.get("stream"):
        return context.call_host(f"call_{args.kind}", request)
    pieces = context.stream_host(f"call_{args.kind}", request)
    while True:
        try:
            context.emit("piece", next(pieces)[1]["text"])
        except StopIteration as end:
            return end.value


@adapter.command("register_tools", Unchecked, lane="session")
def register_tools(args: None, context: Any):
    """Take no notice of the declarations."""
    return {"session_id": "default"}


@adapter.command("fail", Text, lane="worker")
def fail(args: Text, context: Any):
    """Fail as a provider does that is busy."""
    raise errors.LMError(args.text, status=429, retry_after=2.5)


def _note(args: Line) -> None:
    with open(args.path, "a") as file:
        file.write(f"{args.line}\n")


@adapter.command("note", Line, lane="worker", idempotent=True)
def note(args: Line, context: Any):
    """Append a line to a file."""
    _note(args)


@adapter.command("note_once", Line, lane="worker")
def note_once(args: Line, context: Any):
    """Do the same; this command is not idempotent."""
    _note(args)


@adapter.command("wait", Unchecked, lane="worker")
def wait(args: None, context: Any):
    """Wait for the end of the call."""
    context.wait(60)


@adapter.command("echo_array", Numbers, lane="worker", idempotent=True)
def echo_array(args: Numbers, context: Any):
    return args.array
