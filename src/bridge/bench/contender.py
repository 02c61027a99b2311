"""The process that measures one format: check it, time it, and talk to a worker of the same format.

    python -m bridge.bench.contender FORMAT [FILE…]

The parent process decides what is done when, so that all formats take turns. Orders and answers are
lines of JSON: `{"do": "prepare", "payload": name}` is answered with `{"bytes", "zstd", "memory",
"typed_reason"}` or `{"reason"}`, `{"do": "round", "payload": name, "budget": seconds}` with
`{"times": {step: ns}}` or `{"reason"}`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from bridge.bench import formats, payloads
from bridge.bench.case import Case
from bridge.bench.format import reason_of
from bridge.bench.pipe import BridgePipe, Pipe

PYTHON = [sys.executable, "-P", "-m"]


class Contender:
    """One format, the payloads that it has been prepared for, and a worker of the same format."""

    def __init__(self, format: str, paths: Sequence[str]) -> None:
        self.kind = formats.load(format)
        self.own = {payload.name: payload for payload in payloads.from_paths(paths)}
        self.cases: dict[str, Case] = {}
        self.command = [*PYTHON, "bridge.bench.worker", format, *paths]
        self.pipe: Pipe | None = None

    def open(self) -> Pipe:
        """Start the worker."""
        if self.kind.through_bridge:
            return BridgePipe([*PYTHON, "bridge", "worker", "--adapter", "echo"])
        return Pipe(self.command)

    def prepare(self, name: str, memory: bool) -> dict[str, Any]:
        """Check that the format carries a payload, and return its sizes. Raises whatever the library raises.

        memory: measure memory too, which has to be done before timing has filled the heap.
        """
        payload = self.own.get(name) or payloads.builtin(name)
        case = self.cases[name] = Case(self.kind, payload)
        if self.pipe is None:
            self.pipe = self.open()
        case.check()
        facts: dict[str, Any] = {"memory": case.memory() if memory else None, **case.sizes()}
        if not self.kind.through_bridge:
            facts["typed_reason"] = case.check_typed()
        self.pipe.trips(case, len(case.values), check=True)
        return facts

    def round(self, name: str, budget: float) -> dict[str, Any]:
        """Return the times of one round, in ns by step. budget: seconds for each step."""
        case = self.cases[name]
        gc.collect()
        times = {} if self.kind.through_bridge else case.times(budget)
        if self.pipe is None:
            self.pipe = self.open()
        guess = sum(self.pipe.trips(case, 10).values()) / 1e9
        calls = max(15, min(20_000, int(2 * budget / guess)))
        trip = self.pipe.trips(case, calls)
        return {"times": times | {f"trip_{step}": ns for step, ns in trip.items()}}


def main(arguments: Sequence[str]) -> None:
    """Execute orders until stdin ends."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # output of a library must not get among the answers
    contender = Contender(arguments[0], arguments[1:])
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line)
        try:
            if order["do"] == "prepare":
                answer = contender.prepare(order["payload"], order["memory"])
            else:
                answer = contender.round(order["payload"], order["budget"])
        except Exception as error:
            answer = {"reason": reason_of(error)}
            if contender.pipe is not None and contender.pipe.in_conversation:
                # The worker may be waiting for messages that will not come.
                contender.pipe.process.kill()
                contender.pipe.close()
                contender.pipe = None
        answers.write(msgspec.json.encode(answer) + b"\n")
    if contender.pipe is not None:
        contender.pipe.close()


if __name__ == "__main__":
    main(sys.argv[1:])
