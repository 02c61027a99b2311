"""The baseline in Python: a minimal worker with json, struct and buffered stdio.

Its `ping` returns the same fields as that of the bridge's worker.
"""

from __future__ import annotations

import importlib.util
import json
import struct
import sys
import time
from datetime import UTC, datetime
from typing import Any

HEADER = struct.Struct(">I")
STARTED = time.monotonic()
DSPY_AVAILABLE = importlib.util.find_spec("dspy") is not None


def ping(args: dict[str, Any]) -> dict[str, Any]:
    return {
        "status": "ok",
        "timestamp": now(),
        "dspy_available": DSPY_AVAILABLE,
        "uptime": time.monotonic() - STARTED,
        "mode": "standalone",
    }


def echo(args: dict[str, Any]) -> dict[str, Any]:
    return args


COMMANDS = {"ping": ping, "echo": echo}


def now() -> str:
    return datetime.now(UTC).isoformat()


def answer(request: dict[str, Any]) -> dict[str, Any]:
    reply = {"id": request.get("id"), "success": True}
    try:
        reply["result"] = COMMANDS[request["command"]](request.get("args", {}))
    except Exception as error:
        reply.update(success=False, error=str(error))
    reply["timestamp"] = now()
    return reply


def main() -> None:
    while header := sys.stdin.buffer.read(HEADER.size):
        (length,) = HEADER.unpack(header)
        reply = json.dumps(answer(json.loads(sys.stdin.buffer.read(length)))).encode()
        sys.stdout.buffer.write(HEADER.pack(len(reply)))
        sys.stdout.buffer.write(reply)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
