"""An adapter whose commands do what can disturb a host: they block, log, print and keep buffers."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import msgspec

from bridge import Adapter, Context

adapter = Adapter("commands")
kept: list[Any] = []
let_go = threading.Event()
is_stuck = threading.Event()


class Count(msgspec.Struct):
    n: int


@adapter.command("wait")
def wait(args: None, context: Context) -> None:
    """Run until the call is ended."""
    while True:
        context.check()
        time.sleep(0.002)


@adapter.command("stubborn")
def stubborn(args: None, context: Context) -> None:
    """Run until `let_go`, even if the call is ended."""
    let_go.wait()


@adapter.command("stubborn_inline", lane="inline")
def stubborn_inline(args: None, context: Context) -> None:
    """Run until `let_go`, on the caller's thread."""
    is_stuck.set()
    let_go.wait()


@adapter.command("until_stuck")
def until_stuck(args: None, context: Context) -> None:
    """Run until `stubborn_inline` runs."""
    is_stuck.wait()


@adapter.command("let_go", lane="inline")
def let_go_(args: None, context: Context) -> None:
    let_go.set()


@adapter.command("count", Count)
def count(args: Count, context: Context) -> int:
    """Emit the events 0 to n - 1."""
    for number in range(args.n):
        context.emit("number", number)
    return args.n


@adapter.command("count_inline", Count, lane="inline")
def count_inline(args: Count, context: Context) -> int:
    """Emit the events 0 to n - 1, on the caller's thread."""
    return count(args, context)


@adapter.command("ask")
def ask(args: None, context: Context) -> Any:
    """Return what the host answers."""
    return context.call_host("call_tool", {"name": "temperature"})


@adapter.command("keep", msgspec.Raw, lane="inline")
def keep(args: msgspec.Raw, context: Context) -> None:
    """Keep a view of the request's buffers."""
    kept.extend(map(memoryview, context.buffers))


@adapter.command("kept", lane="inline")
def first_of_kept(args: None, context: Context) -> str:
    """Return the first kept buffer as text, and drop them all."""
    text = bytes(kept[0]).decode()
    kept.clear()
    return text


@adapter.command("log", lane="inline")
def log(args: None, context: Context) -> None:
    """Write a line to the log."""
    logging.getLogger("commands").warning("said")


@adapter.command("print", lane="inline")
def print_(args: None, context: Context) -> None:
    """Print, read stdin and set a variable, as user code may."""
    import os
    import sys

    print("printed")
    sys.stdout.flush()
    assert sys.stdin.read() == ""
    os.environ["BRIDGE_TEST"] = "1"
