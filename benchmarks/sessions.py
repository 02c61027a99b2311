"""Measure the cost of sessions: their memory, and the time to find one among many, also while others expire.

    python benchmarks/sessions.py [--json FILE]

Runs in the dispatcher, without a pipe, in a new process for each number of sessions.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bridge import Dispatcher, Options
from bridge.adapters.dspy import adapter
from bridge.worker.stats import memory_usage

NUMBERS = (1_000, 10_000, 100_000)
CALLS = 2_000
ROUNDS = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(figures_of(options.child)))
        return
    figures = {}
    for number in NUMBERS:
        command = [sys.executable, __file__, "--child", str(number)]
        done = subprocess.run(command, capture_output=True, check=True)
        figures[number] = json.loads(done.stdout)
    base = figures[NUMBERS[0]]["found_us"]
    for number, row in figures.items():
        print(
            f"{number:8} sessions: {row['bytes']:6.0f} bytes each; one is found in"
            f" {row['found_us']:.2f} us ({row['found_us'] / base:.2f} x that among {NUMBERS[0]}),"
            f" in {row['expiring_us']:.1f} us while 16 others expire in each call"
        )
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


def figures_of(number: int) -> dict[str, float]:
    """Return bytes of a session, and us to find one, among `number` sessions."""
    dispatcher = Dispatcher(adapter, Options(max_sessions=2 * number, session_ttl=86_400.0))

    def create(first: int, ttl: float) -> None:
        for each in range(first, first + number):
            request = {
                "id": each,
                "command": "create_session",
                "args": {"session_id": f"session-{each:08}", "ttl_s": ttl},
            }
            dispatcher.call(json.dumps(request).encode())

    dispatcher.call(b'{"id": 1, "command": "create_session", "session_id": "first"}')
    before = memory_usage()["rss"]
    create(0, 86_400.0)
    used = memory_usage()["rss"] - before
    calls = min(CALLS, number // 32)  # each call removes 16 expired sessions
    found_us = time_to_find(dispatcher, calls)
    ttl = max(1.0, number / 10_000)  # longer than it takes to create them
    create(number, ttl)
    time.sleep(ttl + 1.1)  # expiry is checked once a second
    expired = dispatcher.sessions.expired
    expiring_us = time_to_find(dispatcher, calls)
    assert dispatcher.sessions.expired > expired
    return {"bytes": used / number, "found_us": found_us, "expiring_us": expiring_us}


def time_to_find(dispatcher: Dispatcher, calls: int) -> float:
    """Return the us that the reader thread takes to find the session of a call."""
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls // ROUNDS):
            dispatcher.sessions.open("session-00000000")
        rounds.append((time.perf_counter() - started) / (calls // ROUNDS) * 1e6)
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
