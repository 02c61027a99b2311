"""What listeners cost: a ping through the dispatcher, without a pipe, with nobody listening and
with some who do; and a stage."""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from bridge import Dispatcher
from bridge._framing import Frame, Outbox
from bridge.adapters.echo import adapter
from bridge.telemetry import tracing
from bridge.telemetry.activity import around, listen
from bridge.worker.control import control

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


class Deaf:
    """Listens, and does nothing."""

    def started(self, activity: object) -> None:
        pass

    complete = started

    def failed(self, activity: object, error: object) -> None:
        pass


def listening() -> dict[str, list[float]]:
    """The rounds of pings and of a stage."""
    trace.set_tracer_provider(TracerProvider())
    dispatcher = Dispatcher(adapter)
    dispatcher.add(control(dispatcher))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0"
    frames = {
        sampled: Frame.of(json.dumps({"id": 1, "command": "ping", "traceparent": parent + sampled}).encode())
        for sampled in "01"
    }

    def ping(sampled: str = "0") -> None:
        dispatcher.path.answer(frames[sampled], Outbox(), None)

    def stage() -> None:
        with around("stage", "a stage"):
            pass

    subjects = {
        "a ping": (None, ping),
        "the same, a listener": (lambda: listen(Deaf()), ping),
        "the same, --telemetry, not sampled": (tracing.start, ping),
        "the same, --telemetry, sampled": (tracing.start, lambda: ping("1")),
        "a stage": (None, stage),
        "the same, a listener ": (lambda: listen(Deaf()), stage),
    }
    rounds: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(ROUNDS):
        for name, (start, subject) in subjects.items():
            stop = start() if start else None
            rounds[name].append(timeit.timeit(subject, number=CALLS) / CALLS * 1e9)
            if stop:
                stop()
    return rounds


if __name__ == "__main__":
    main()
