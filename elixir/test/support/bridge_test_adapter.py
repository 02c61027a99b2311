"""Commands that misbehave, for the tests: workers are started with this folder on PYTHONPATH."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from typing import Any

import msgspec

from bridge import Adapter, Context

adapter = Adapter("misbehaving")
ended = threading.Event()


class Events(msgspec.Struct):
    count: int
    every: float = 0.0  # seconds between them
    then: float = 0.0  # seconds behind the last


class Ask(msgspec.Struct):
    name: str | None = None
    args: dict[str, Any] = {}


@adapter.command("print", idempotent=True)
def print_all(args: None, context: Context) -> dict[str, Any]:
    """Writes to stdout in every way that there is."""
    print("hello", flush=True)
    os.write(1, b"hello\n")
    sys.__stdout__.write("hello\n")
    os.system("echo hello")
    return {"printed": True}


@adapter.command("never", idempotent=True)
def never(args: None, context: Context) -> None:
    """Never answers, and says when it was told to stop."""
    try:
        while True:
            context.check()
            time.sleep(0.005)
    finally:
        ended.set()


@adapter.command("stopped", lane="inline", idempotent=True)
def stopped(args: None, context: Context) -> dict[str, bool]:
    """Whether `never` was told to stop."""
    return {"stopped": ended.is_set()}


@adapter.command("events", Events)
def events(args: Events, context: Context) -> dict[str, int]:
    """So many events, then a pause."""
    sent = 0
    try:
        for sent in range(1, args.count + 1):
            context.emit("chunk", {"number": sent})
            context.check()
            time.sleep(args.every)
        deadline = time.monotonic() + args.then
        while time.monotonic() < deadline:
            context.check()
            time.sleep(0.005)
    finally:
        counted["sent"] = sent
    return {"sent": sent}


counted = {"sent": 0}


@adapter.command("sent", lane="inline", idempotent=True)
def sent(args: None, context: Context) -> dict[str, int]:
    """How many events the last `events` call sent, once it has ended."""
    return counted


@adapter.command("ask", Ask)
def ask(args: Ask, context: Context) -> dict[str, Any]:
    """Asks the host for a tool of the call's session; without a name, for none."""
    question = {"args": args.args, "session_id": context.session_id}
    if args.name is not None:
        question["name"] = args.name
    return {"answer": context.call_host("call_tool", question)}


class AskHost(msgspec.Struct):
    command: str
    args: dict[str, Any]


@adapter.command("ask_host", AskHost)
def ask_host(args: AskHost, context: Context) -> Any:
    """Asks the host for anything."""
    return {"answer": context.call_host(args.command, {"session_id": context.session.id, **args.args})}


@adapter.command("hold", idempotent=True)
def hold(args: None, context: Context) -> dict[str, Any]:
    """Waits for a second, and cannot be told to stop."""
    time.sleep(1.0)
    return {}


@adapter.command("hang", idempotent=True)
def hang(args: None, context: Context) -> dict[str, Any]:
    """Waits for longer than any test, and cannot be told to stop."""
    time.sleep(600.0)
    return {}


@adapter.command("envelope", idempotent=True)
def envelope(args: None, context: Context) -> dict[str, Any]:
    """What came beside the args."""
    return {"session_id": context.session_id, "traceparent": context.request.traceparent}


@adapter.command("log", idempotent=True)
def log(args: None, context: Context) -> dict[str, Any]:
    """Logs a warning."""
    logging.getLogger("test").warning("careful with %s", "that")
    return {}


@adapter.command("fail", idempotent=True)
def fail(args: None, context: Context) -> dict[str, Any]:
    """Raises, and logs the traceback of something else before."""
    try:
        raise ValueError("first line\nsecond line")
    except ValueError:
        logging.getLogger("test").exception("it went wrong:\nin two lines")
    raise RuntimeError("not caught\nat all")


class Item(msgspec.Struct):
    item: int
    id: str | None = None


collected: list[int] = []


@adapter.command("collect", Item, lane="session")
def collect(args: Item, context: Context) -> dict[str, int]:
    """Adds to what was collected."""
    collected.append(args.item)
    return {"count": len(collected)}


@adapter.command("collected", lane="inline", idempotent=True)
def all_collected(args: None, context: Context) -> dict[str, list[int]]:
    """What was collected, in order."""
    return {"items": collected}
