"""A pool under many callers while its workers and templates are killed, stopped or renewed; the counts as JSON.

    python tests/adversity/pool_storm.py --seconds 60 --kill workers

Each call sends a text of its own and gets its length, so that another call's answer would be noticed. The exit status
is 1 if a call had a wrong answer or none, if too many failed, or if a process is left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent.parent / "support"
LEAST_SUCCESS = 0.99  # of the calls that may be repeated
HANG = 60.0  # seconds after which a call counts as one without an answer


class Counts:
    """What has happened to the calls of all callers. failures: (moment, code) of each failed call."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: Counter[str] = Counter()
        self.succeeded: Counter[str] = Counter()
        self.failures: list[tuple[float, str]] = []
        self.wrong = self.unanswered = 0

    def add(self, command: str, outcome: Any, expected: int) -> None:
        """Count a call with its result or error."""
        with self.lock:
            self.calls[command] += 1
            if isinstance(outcome, BaseException):
                self.failures.append((time.monotonic(), getattr(outcome, "code", type(outcome).__name__)))
            elif outcome == expected:
                self.succeeded[command] += 1
            else:
                self.wrong += 1


def call(pool: Any, counts: Counts, caller: int, done: threading.Event) -> None:
    """Make calls of each kind in turn until the end."""
    number = 0
    while not done.is_set():
        number += 1
        text = "x" * (caller * 50 + number % 50)
        command = "length_once" if number % 10 == 0 else "length"
        try:
            if number % 3:
                outcome = pool.call(command, {"text": text}, timeout=HANG / 2)
            else:
                outcome = pool.submit(command, {"text": text}, timeout=HANG / 2).result(HANG)
        except TimeoutError:
            counts.unanswered += 1
            continue
        except Exception as error:
            outcome = error
        counts.add(command, outcome, len(text))


def disturb(pool: Any, what: str, pause: float, done: threading.Event) -> list[float]:
    """Kill, stop or renew until the end, and return when that was done."""
    moments = []
    number = 0
    while not done.wait(pause):
        number += 1
        ready = pool._slots.ready
        with contextlib.suppress(OSError, IndexError):
            moments.append(time.monotonic())
            if what == "workers":
                os.kill(ready[number % len(ready)].pid, signal.SIGKILL)
            elif what == "template":
                os.kill(pool._supervisor._launcher._template.pid, signal.SIGKILL)
            elif what == "stop-worker":
                os.kill(ready[number % len(ready)].pid, signal.SIGSTOP)
            elif what == "stop-template":
                os.kill(pool._supervisor._launcher._template.pid, signal.SIGSTOP)
                os.kill(ready[number % len(ready)].pid, signal.SIGKILL)
            elif what == "renew":
                pool.renew()
    return moments


def storm(what: str, seconds: float, callers: int, workers: int, pause: float) -> dict[str, Any]:
    """Run a storm, and return the counts."""
    from bridge import Pool

    counts, done, pids = Counts(), threading.Event(), set()
    moments: list[float] = []

    def note(event: dict[str, Any]) -> None:
        if event.get("pid"):
            pids.add(event["pid"])

    env = {"PYTHONPATH": str(SUPPORT)}
    with Pool(workers, adapter="pool_workers:adapter", flags=["--quiet"], env=env, on_event=note) as pool:
        threads = [threading.Thread(target=call, args=(pool, counts, caller, done)) for caller in range(callers)]
        threads.append(threading.Thread(target=lambda: moments.extend(disturb(pool, what, pause, done))))
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        done.set()
        for thread in threads:
            thread.join(HANG + 10)
        counts.unanswered += sum(thread.is_alive() for thread in threads)
        retries = pool.status()
    windows = sorted(
        1000 * (moment - max((each for each in moments if each <= moment), default=moment))
        for moment, _ in counts.failures
    )
    return {
        "disturbed": what,
        "times": len(moments),
        "seconds": seconds,
        "calls": sum(counts.calls.values()),
        "succeeded": sum(counts.succeeded.values()),
        "idempotent_success": round(counts.succeeded["length"] / max(1, counts.calls["length"]), 5),
        "wrong_answers": counts.wrong,
        "unanswered": counts.unanswered,
        "errors": dict(Counter(code for _, code in counts.failures)),
        "ms_from_kill_to_error": {"p50": _at(windows, 0.5), "p99": _at(windows, 0.99), "max": _at(windows, 1.0)},
        "processes_started": len(pids),
        "processes_left": len([pid for pid in pids if _is_alive(pid)]),
        "open_calls_left": retries["in_flight"],
    }


def _at(values: list[float], fraction: float) -> float | None:
    return round(values[min(len(values) - 1, int(fraction * len(values)))], 1) if values else None


def _is_alive(pid: int) -> bool:
    """Return whether a process has not ended a moment after the pool was stopped."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.05)
    return True


def is_fine(counts: dict[str, Any]) -> bool:
    """Return whether a storm has done no harm."""
    nothing = ("wrong_answers", "unanswered", "processes_left", "open_calls_left")
    return not any(counts[name] for name in nothing) and counts["idempotent_success"] >= LEAST_SUCCESS


PAUSES = {"workers": 0.1, "template": 1.0, "stop-worker": 10.0, "stop-template": 8.0, "renew": 2.0}  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kill", choices=(*PAUSES, "all"), default="workers", help="what is disturbed, and how")
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--workers", type=int, default=4)
    given = parser.parse_args()
    results = [
        storm(what, given.seconds, given.callers, given.workers, PAUSES[what])
        for what in (PAUSES if given.kill == "all" else (given.kill,))
    ]
    for counts in results:
        print(json.dumps(counts))
    return 0 if all(is_fine(counts) for counts in results) else 1


if __name__ == "__main__":
    sys.exit(main())
