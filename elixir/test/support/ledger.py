"""A session's ledger, for tests of what several owners of a session would do to it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from bridge import Adapter, Context

adapter = Adapter("ledger")
KIND = "entry"


class Entry(msgspec.Struct):
    entry: str


class Events(msgspec.Struct):
    count: int
    size: int = 1  # bytes of each
    every: float = 0.0  # seconds between them


class Tools(msgspec.Struct):
    tools: list[dict[str, Any]]


class Question(msgspec.Struct):
    name: str


@adapter.command("append", Entry, lane="session")
def append(args: Entry, context: Context) -> dict[str, object]:
    """Add an entry at the end; return its place, and whether it was there before."""
    entries = context.session.records.of(KIND)
    known = entries.get(args.entry)
    place = len(entries) if known is None else int(known)
    context.session.records.put(KIND, args.entry, b"%d" % place)
    return {"place": place, "again": known is not None}


@adapter.command("find", Entry, idempotent=True)
def find(args: Entry, context: Context) -> dict[str, bool]:
    """Return whether there is such an entry."""
    return {"found": args.entry in context.session.records.of(KIND)}


@adapter.command("entries", idempotent=True)
def entries(args: None, context: Context) -> dict[str, dict[str, int]]:
    """Return the places of all entries."""
    return {"entries": {name: int(place) for name, place in context.session.records.of(KIND).items()}}


@adapter.command("events", Events, idempotent=True)
def events(args: Events, context: Context) -> dict[str, int]:
    """Send events with their numbers."""
    for number in range(args.count):
        context.emit("chunk", {"number": number, "text": "x" * args.size})
        context.check()
        time.sleep(args.every)
    return {"sent": args.count}


@adapter.command("wait")
def wait(args: None, context: Context) -> None:
    """Wait until the caller does not wait any more."""
    while True:
        context.check()
        time.sleep(0.005)


@adapter.command("register_tools", Tools, lane="session", idempotent=True)
def register_tools(args: Tools, context: Context) -> dict[str, object]:
    """Take note of nothing: `ask` asks for any tool."""
    return {"session_id": context.session.id}


@adapter.command("ask", Question, idempotent=True)
def ask(args: Question, context: Context) -> object:
    """Ask the host for a tool."""
    return {"answer": context.call_host("call_tool", {"name": args.name, "args": {}, "session_id": context.session_id})}


@adapter.command("echo", msgspec.Raw, idempotent=True)
def echo(args: msgspec.Raw, context: Context) -> msgspec.Raw:
    """Return the args, byte for byte."""
    context.pass_buffers()
    return args
