"""Measure durable changes: writes of sessions through the store, beside bare sqlite3.

    python benchmarks/store.py [--quick] [--only store|worker] [--json FILE]

The files are made in the current folder, which should be on a real disk. Contenders take turns; a
figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bridge import Client, Quota
from bridge.records import SessionSettings
from bridge.worker.stores.sqlite import SQLiteStore

SIZE = 200  # bytes of one change, about a small map
AT_ONCE = 64  # threads
REPEATS = 16  # times as many writes with threads, so that starting them does not count

turn = itertools.count()


def value() -> bytes:
    """Return a new value each time: SQLite does not write an unchanged row."""
    return str(next(turn)).encode().ljust(SIZE, b".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", choices=["store", "worker"])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rounds, writes = (5, 64) if options.quick else (15, 256)
    figures = {}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        for section, contenders in (("store", in_process), ("worker", through_a_worker)):
            if options.only in (None, section):
                figures |= measured(contenders(folder), rounds, writes)
    report(figures)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


Contender = Callable[[int], int]  # makes at least that many writes, and returns how many


def measured(contenders: dict[str, Contender], rounds: int, writes: int) -> dict[str, list[float]]:
    """Return the microseconds of a write in each round, by contender."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for write in contenders.values():
        write(AT_ONCE)
    for _ in range(rounds):
        for name, write in contenders.items():
            started = time.perf_counter()
            made = write(writes)
            figures[name].append((time.perf_counter() - started) / made * 1e6)
    return figures


def in_process(folder: Path) -> dict[str, Contender]:
    """Return contenders in this process: the store, equal rows with sqlite3, and the disk."""
    store = SQLiteStore(folder / "store.db")
    owned = {
        f"s{number}": store.create(f"s{number}", SessionSettings("", 3600.0, Quota()), {}) for number in range(AT_ONCE)
    }

    def write(number: int) -> None:
        name = f"s{number % AT_ONCE}"
        store.write(name, owned[name], {("data", "key"): value()})

    bare = sqlite3.connect(folder / "bare.db", isolation_level=None)
    bare.execute("PRAGMA journal_mode = WAL")
    bare.execute("PRAGMA synchronous = FULL")
    bare.execute("CREATE TABLE records (session INTEGER PRIMARY KEY, value BLOB)")

    def insert(number: int) -> None:
        row = (number % AT_ONCE, value())
        bare.execute("INSERT OR REPLACE INTO records VALUES (?, ?)", row)

    def one_transaction(writes: int) -> int:
        for start in range(0, writes, AT_ONCE):
            bare.execute("BEGIN IMMEDIATE")
            for number in range(start, min(start + AT_ONCE, writes)):
                insert(number)
            bare.execute("COMMIT")
        return writes

    plain = os.open(folder / "plain", os.O_CREAT | os.O_WRONLY)

    def synced(writes: int) -> int:
        for number in range(writes):
            os.pwrite(plain, value(), 4096 * (number % AT_ONCE))
            os.fdatasync(plain)
        return writes

    return {
        "fdatasync of a file, one after the other": synced,
        "bare sqlite3, a transaction each": sequential(insert),
        f"bare sqlite3, {AT_ONCE} in a transaction": one_transaction,
        "store, one after the other": sequential(write),
        f"store, {AT_ONCE} threads": threaded(write),
    }


def through_a_worker(folder: Path) -> dict[str, Contender]:
    """Return contenders that call a worker's update_session_data, in memory and durable."""
    store = f"sqlite:{folder / 'worker.db'}"
    client = Client.start(adapter="echo", flags=["--store", store])
    for number in range(AT_ONCE):
        client.call("create_session", {"durable": True}, session_id=f"durable {number}")

    def update(kind: str, number: int) -> None:
        client.call(
            "update_session_data",
            {"key": "key", "value": value()},
            session_id=f"{kind} {number % AT_ONCE}",
        )

    def in_memory(number: int) -> None:
        update("memory", number)

    def durable(number: int) -> None:
        update("durable", number)

    return {
        "worker, in memory, one after the other": sequential(in_memory),
        "worker, durable, one after the other": sequential(durable),
        f"worker, in memory, {AT_ONCE} callers": threaded(in_memory),
        f"worker, durable, {AT_ONCE} callers": threaded(durable),
    }


def sequential(write: Callable[[int], None]) -> Contender:
    def run(writes: int) -> int:
        for number in range(writes):
            write(number)
        return writes

    return run


def threaded(write: Callable[[int], None]) -> Contender:
    """Return a contender that writes on AT_ONCE threads, each to its own session, so that none waits for another."""

    def run(writes: int) -> int:
        def some(first: int) -> None:
            for number in range(first, REPEATS * writes, AT_ONCE):
                write(number)

        threads = [threading.Thread(target=some, args=(first,)) for first in range(AT_ONCE)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return REPEATS * writes

    return run


def report(figures: dict[str, list[float]]) -> None:
    baseline = "bare sqlite3, a transaction each"
    medians = {name: statistics.median(times) for name, times in figures.items()}
    for name, median in medians.items():
        ratio = f"{median / medians[baseline]:8.2f} x bare" if baseline in medians else ""
        print(f"{name:44}{median:10.0f} us a write{ratio}")


if __name__ == "__main__":
    main()
