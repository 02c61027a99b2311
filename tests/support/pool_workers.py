"""An adapter whose commands tell which worker they run in, change what workers share, and end or block their worker."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from typing import Any

import msgspec

from bridge import Adapter, Unchecked

adapter = Adapter("pool_workers")


class Seconds(msgspec.Struct):
    seconds: float = 0.0
    marker: str = ""  # a file that keeps the worker from doing it again


class Name(msgspec.Struct):
    name: str = ""


class Many(msgspec.Struct):
    count: int = 0
    marker: str = ""


class Text(msgspec.Struct):
    text: str = ""


@adapter.command("pid", Unchecked, lane="inline", idempotent=True)
def pid(args: None, context: Any):
    return os.getpid()


@adapter.command("work", Seconds, lane="worker", idempotent=True)
def work(args: Seconds, context: Any):
    """Wait, and return the process id."""
    time.sleep(args.seconds)
    return os.getpid()


@adapter.command("work_once", Seconds, lane="worker")
def work_once(args: Seconds, context: Any):
    """Do the same; this command is not idempotent."""
    time.sleep(args.seconds)
    return os.getpid()


@adapter.command("add_name", Name, lane="session")
def add_name(args: Name, context: Any):
    """Add a name to the session; not to be done twice."""
    names = context.session.state.setdefault("names", [])
    names.append(args.name)
    return list(names)


@adapter.command("names", Unchecked, idempotent=True)
def names(args: None, context: Any):
    return [os.getpid(), context.session.state.get("names", [])]


def _die(marker: str) -> None:
    if not marker or not os.path.exists(marker):
        if marker:
            open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)


@adapter.command("die", Seconds, lane="worker", idempotent=True)
def die(args: Seconds, context: Any):
    """Kill the worker, unless `marker` exists."""
    time.sleep(args.seconds)
    _die(args.marker)
    return os.getpid()


@adapter.command("die_once", Seconds, lane="worker")
def die_once(args: Seconds, context: Any):
    """Do the same; this command is not idempotent."""
    _die(args.marker)
    return os.getpid()


@adapter.command("count", Many, lane="worker", idempotent=True)
def count(args: Many, context: Any):
    """Emit numbers; then kill the worker, if `marker` is given and does not exist."""
    for number in range(args.count):
        context.emit("number", number)
    if args.marker:
        _die(args.marker)
    return args.count


@adapter.command("hold_gil", Seconds, lane="worker", idempotent=True)
def hold_gil(args: Seconds, context: Any):
    """Sleep without releasing the GIL, unless `marker` exists."""
    if not args.marker or not os.path.exists(args.marker):
        if args.marker:
            open(args.marker, "w").close()
        ctypes.PyDLL(None).usleep(int(args.seconds * 1e6))
    return os.getpid()


@adapter.command("length", Text, lane="worker", idempotent=True)
def length(args: Text, context: Any):
    return len(args.text)


@adapter.command("length_once", Text, lane="worker")
def length_once(args: Text, context: Any):
    """Do the same; this command is not idempotent."""
    return len(args.text)


HELD = []


@adapter.command("eat", Many, lane="worker", idempotent=True)
def eat(args: Many, context: Any):
    """Keep so many bytes of memory."""
    HELD.append(b"x" * args.count)
    return os.getpid()
