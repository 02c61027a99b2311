"""An adapter whose handlers do what handlers must not do."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec

from bridge import Adapter, errors

adapter = Adapter("hostile")
started = threading.Event()
HELD: list[Any] = []  # secrets


class LogAsArgs(msgspec.Struct):
    logger: str
    level: str


class Args(msgspec.Struct):
    lane: str = ""
    seconds: float = 0.0
    size: int = 0


def both_lanes(name: str, args: type = Args):
    """Declare a handler as an inline command, and as NAME_on_thread on a thread."""

    def declare(handler):
        adapter.command(name, args, lane="inline")(handler)
        adapter.command(f"{name}_on_thread", args)(handler)
        return handler

    return declare


@both_lanes("raise")
def raises(args: Args, context: Any):
    raise ValueError("no such thing\nand a second line")


@both_lanes("exit")
def exits(args: Args, context: Any):
    sys.exit(3)


@both_lanes("recurse")
def recurses(args: Args, context: Any):
    return recurses(args, context)


@both_lanes("unencodable")
def unencodable(args: Args, context: Any):
    return {"value": object()}


@both_lanes("cyclic")
def cyclic(args: Args, context: Any):
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@both_lanes("not_finite")
def not_finite(args: Args, context: Any):
    return {"list": [1.0, {"deep": float("nan")}], "none": None}


@both_lanes("big_integer")
def big_integer(args: Args, context: Any):
    return {"value": 2**70}


@both_lanes("large")
def large(args: Args, context: Any):
    return {"value": "x" * args.size}


@both_lanes("surrogate")
def surrogate(args: Args, context: Any):
    raise ValueError("lone \ud800 surrogate")


@both_lanes("own_error")
def own_error(args: Args, context: Any):
    raise errors.QuotaExceeded("enough", retry_after=2.5, what=object())


@both_lanes("print")
def prints(args: Args, context: Any):
    print("print", flush=True)
    sys.__stdout__.write("sys.__stdout__\n")
    sys.__stdout__.flush()
    os.write(1, b"os.write\n")
    libc = ctypes.CDLL(None)
    libc.puts(b"puts")
    libc.fflush(None)
    subprocess.run(["echo", "child"], check=True)
    return {"read": sys.stdin.read()}


@adapter.command("echo", dict[str, Any], lane="inline")
def echo(args: dict[str, Any], context: Any):
    return args


@adapter.command("sleep", Args)
def sleep(args: Args, context: Any):
    time.sleep(args.seconds)
    return {"slept": args.seconds}


@adapter.command("hold_gil", Args)
def hold_gil(args: Args, context: Any):
    """Block in C while holding the GIL, which PyDLL calls do not release."""
    ctypes.PyDLL(None).usleep(int(args.seconds * 1_000_000))
    return {}


@adapter.command("child", Args)
def child(args: Args, context: Any):
    """Start a process that would outlive the worker."""
    process = subprocess.Popen(["sleep", "600"])
    return {"pid": process.pid}


@adapter.command("fork", Args)
def fork(args: Args, context: Any):
    """Leave a child in a new session that holds every descriptor of the worker."""
    ready, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.write(done, b".")
        time.sleep(args.seconds)
        os._exit(0)
    os.read(ready, 1)  # a child that is not yet in its session would end with the worker
    os.close(ready)
    os.close(done)
    return {"pid": pid}


@adapter.command("environment", Args, lane="inline")
def environment(args: Args, context: Any):
    return dict(os.environ)


@adapter.command("modules", Args, lane="inline")
def modules(args: Args, context: Any):
    return sorted(sys.modules)


@adapter.command("wait_politely", Args)
def wait_politely(args: Args, context: Any):
    """Check between steps whether the call was cancelled."""
    end = time.monotonic() + args.seconds
    while time.monotonic() < end:
        context.check()
        time.sleep(0.002)
    return {"remaining": context.remaining}


@adapter.command("emit", Args)
def emit(args: Args, context: Any):
    """Send `size` events."""
    for number in range(args.size):
        context.emit("number", number)
    return {"streaming": context.streaming}


@adapter.command("emit_inline", Args, lane="inline")
def emit_inline(args: Args, context: Any):
    context.emit("number", 1)
    return {}


@adapter.command("emit_not_finite", Args)
def emit_not_finite(args: Args, context: Any):
    context.emit("number", {"value": float("inf")})
    return {}


@adapter.command("emit_large", Args)
def emit_large(args: Args, context: Any):
    context.emit("text", "x" * args.size)
    return {}


@adapter.command("ask_host_inline", Args, lane="inline")
def ask_host_inline(args: Args, context: Any):
    return {"answer": context.call_host("question", {})}


@adapter.command("ask_host", Args)
def ask_host(args: Args, context: Any):
    return {"answer": context.call_host("question", {"size": args.size})}


declared: list[Any] = []


@adapter.command("register_tools", dict[str, Any], lane="inline")
def register_tools(args: dict[str, Any], context: Any):
    """Declare tools as the DSPy adapter does. `declared_tools` returns them."""
    declared[:] = args["tools"]
    return {"session_id": "default"}


@adapter.command("declared_tools", lane="inline")
def declared_tools(args: Any, context: Any):
    return declared


@adapter.command("use_tool", dict[str, Any])
def use_tool(args: dict[str, Any], context: Any):
    """Call a tool of the host, as a program does."""
    return context.call_host("call_tool", {"session_id": "default", **args})


class SecretArgs(msgspec.Struct):
    secret: str


@both_lanes("leak", SecretArgs)
def leak(args: SecretArgs, context: Any):
    """Send a known secret through every output."""
    import logging
    import warnings

    from bridge.security.redaction import hold

    secret = args.secret
    HELD.append(hold([secret]))
    print("printed:", secret)
    sys.stderr.writelines([f"written: {secret}\n"])
    library = logging.getLogger(f"library.{secret}")
    library.warning("asked with %s", secret, extra={"key": secret, "headers": {"auth": secret}})
    warnings.warn(f"a warning about {secret}", stacklevel=1)
    thread = threading.Thread(target=_fail, args=(secret,))
    thread.start()
    thread.join()
    try:
        _fail(secret)
    except ValueError as error:
        library.exception("failed")
        raise RuntimeError(f"refused: {secret}") from error


def _fail(secret: str):
    raise ValueError(f"no such key: {secret}")


@adapter.command("log_as", LogAsArgs)
def log_as(args: LogAsArgs, context: Any):
    import logging

    logging.getLogger(args.logger).log(logging.getLevelName(args.level), "logged")
    return {}


@adapter.command("log", Args)
def log(args: Args, context: Any):
    import logging

    logging.getLogger("hostile").warning("hello %s", args.size)
    return {}
