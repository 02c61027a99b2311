"""What workers do in `pool.py` and `scaling.py`: `adapter` has a command that keeps a core busy, and one that waits.

`python pool_load.py ADDRESS MODEL` runs programs in a worker of its own at ADDRESS, 64 at a time, from a line on stdin
to the next one. MODEL: settings of `configure_lm`, in JSON.
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

import msgspec

from bridge import Adapter

PROGRAMS = 64  # in flight
SIGNATURE = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
EXECUTE = {"program_id": "qa", "inputs": {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}}
adapter = Adapter("busy")


class Count(msgspec.Struct):
    """to: how far to count; a million takes about 20 ms."""

    to: int


@adapter.command("count", Count, idempotent=True)
def count(args: Count, context: Any) -> dict[str, int]:
    """Add numbers in a Python loop, and return the sum."""
    total = 0
    for number in range(args.to):
        total += number
    return {"sum": total}


class Wait(msgspec.Struct):
    seconds: float


@adapter.command("wait", Wait, idempotent=True)
def wait(args: Wait, context: Any) -> dict[str, float]:
    """Wait, as for the answer of a model."""
    context.wait(args.seconds)
    return {"waited": args.seconds}


def prepare(client: Any, model: dict[str, Any]) -> None:
    """Make the program that `EXECUTE` runs."""
    client.call("configure_lm", model)
    client.call("create_program", {"id": "qa", "signature": SIGNATURE})


def main() -> None:
    from bridge import Client

    address, model = sys.argv[1], json.loads(sys.argv[2])
    with Client.connect(address, timeout=60.0) as client:
        prepare(client, model)
        client.call("execute_program", EXECUTE)
        print("ready", flush=True)
        while sys.stdin.readline():
            ended = threading.Event()

            def work(ended: threading.Event = ended) -> None:
                while not ended.is_set():
                    client.call("execute_program", EXECUTE)

            threads = [threading.Thread(target=work) for _ in range(PROGRAMS)]
            for thread in threads:
                thread.start()
            sys.stdin.readline()
            ended.set()
            for thread in threads:
                thread.join()
            print("stopped", flush=True)


if __name__ == "__main__":
    main()
