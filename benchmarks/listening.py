"""Measure the cost of listeners: a ping through the dispatcher, and an activity, with and without listeners.

No pipe is involved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from bridge import Dispatcher, activity, listen
from bridge._framing import Frame, Outbox
from bridge.adapters.echo import adapter
from bridge.telemetry import tracing

CALLS = 10_000
ROUNDS = 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rounds = listening()
    medians = {name: statistics.median(times) for name, times in rounds.items()}
    for name, median in medians.items():
        print(f"{name:40}{median:8.0f} ns")
    if options.json:
        Path(options.json).write_text(json.dumps({"ns": medians, "rounds": rounds}, indent=1))


class Idle:
    """A listener that does nothing."""

    def started(self, activity: object) -> None:
        pass

    complete = started

    def failed(self, activity: object, error: object) -> None:
        pass


def listening() -> dict[str, list[float]]:
    """Return the ns that a call takes in each round, by contender."""
    trace.set_tracer_provider(TracerProvider())
    dispatcher = Dispatcher(adapter)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
    frames = {
        sampled: Frame.of(json.dumps({"id": 1, "command": "ping", "traceparent": parent + sampled}).encode())
        for sampled in "01"
    }

    def ping(sampled: str = "0") -> None:
        dispatcher.path.answer(frames[sampled], Outbox(), None)

    def stage() -> None:
        with activity("stage", "a stage"):
            pass

    contenders = {
        "a ping": (None, ping),
        "a ping, a listener": (lambda: listen(Idle()), ping),
        "a ping, --telemetry, not sampled": (tracing.start, ping),
        "a ping, --telemetry, sampled": (tracing.start, lambda: ping("1")),
        "a stage": (None, stage),
        "a stage, a listener": (lambda: listen(Idle()), stage),
    }
    rounds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, (start, call) in contenders.items():
            stop = start() if start else None
            rounds[name].append(timeit.timeit(call, number=CALLS) / CALLS * 1e9)
            if stop:
                stop()
    return rounds


if __name__ == "__main__":
    main()
