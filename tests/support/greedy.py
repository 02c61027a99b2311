"""An adapter whose handlers use more memory or CPU time than a worker may have."""

from __future__ import annotations

import resource
import subprocess
import sys
from typing import Any

import msgspec

from bridge import Adapter

adapter = Adapter("greedy")
eaten: list[bytes] = []


class Args(msgspec.Struct):
    size: int = 1 << 20
    times: int = 1


@adapter.command("eat", Args)
def eat(args: Args, context: Any):
    """Allocate `times` blocks of `size` bytes, and keep them."""
    for _ in range(args.times):
        eaten.append(b"\1" * args.size)
    return {"eaten": sum(map(len, eaten))}


@adapter.command("forget", Args)
def forget(args: Args, context: Any):
    """Free what was eaten."""
    eaten.clear()
    return {}


@adapter.command("burn", Args)
def burn(args: Args, context: Any):
    """Use the CPU without end, while holding the GIL."""
    return sum(range(1 << 62))


@adapter.command("child_limits", Args)
def child_limits(args: Args, context: Any):
    """Return the limits of a child process."""
    code = "import resource as r; print(r.getrlimit(r.RLIMIT_DATA)[0], r.getrlimit(r.RLIMIT_CPU)[0])"
    text = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    memory, cpu = map(int, text.split())
    return {"memory": memory, "cpu": cpu}


@adapter.command("limits", lane="inline")
def limits(args: Any, context: Any):
    """Return the limits of the worker itself."""
    memory, cpu = resource.getrlimit(resource.RLIMIT_DATA), resource.getrlimit(resource.RLIMIT_CPU)
    return {"memory": list(memory), "cpu": list(cpu)}
