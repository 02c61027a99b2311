"""Measure durable changes in PostgreSQL, through the store and through a worker, beside bare psycopg and SQLite.

    python benchmarks/postgres.py [--quick] [--only store|take|worker] [--writers N…] [--json FILE]

All contenders of a section use one server, which is started for the run.
They take turns; a figure is the median of the rounds, and a ratio that of the ratios of each round.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from bridge import Client, Quota
from bridge.records import SessionSettings
from bridge.worker.stores import open_store

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

from postgres_server import PostgresServer  # found through the line above

SIZE = 200  # bytes of one change, about a small map
UPSERT = "INSERT INTO bare VALUES (%s, %s) ON CONFLICT (id) DO UPDATE SET value = excluded.value"
BARE = "bare psycopg, a transaction each"

turn = itertools.count()
Write = Callable[[int], object]  # makes the change of that writer


def value() -> bytes:
    """Return a new value each time."""
    return str(next(turn)).encode().ljust(SIZE, b".")


class Contender:
    """Makes changes by `writers` threads, each of its own row or session."""

    def __init__(self, name: str, writers: int, write: Write) -> None:
        self.name = name
        self.writers = writers
        self._write = write
        self.times: list[float] = []  # microseconds of a change, in each round
        self.transactions: list[float] = []  # of the server, for a change

    def run(self, server: PostgresServer, changes: int) -> None:
        each = max(changes // self.writers, 4)

        def some(writer: int) -> None:
            for _ in range(each):
                self._write(writer)

        before = transactions(server)
        threads = [threading.Thread(target=some, args=(writer,)) for writer in range(self.writers)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        self.times.append(elapsed / (each * self.writers) * 1e6)
        self.transactions.append((transactions(server) - before) / (each * self.writers))


def transactions(server: PostgresServer) -> int:
    """Return how many transactions have written anything."""
    return int(server.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")[0][0])


class Bare:
    """Connections of psycopg, one for each writer, with the table of the baseline."""

    def __init__(self, url: str, writers: int) -> None:
        self._connections = [psycopg.connect(url) for _ in range(writers)]
        first = self._connections[0]
        first.execute("CREATE TABLE IF NOT EXISTS bare (id bigint PRIMARY KEY, value bytea)")
        first.commit()

    def transaction(self, writer: int) -> None:
        """Send BEGIN, the statement and COMMIT, as psycopg does."""
        connection = self._connections[writer]
        connection.execute(UPSERT, (writer, value()))
        connection.commit()

    def statement(self, writer: int) -> None:
        """Send the statement alone, which is its own transaction."""
        self._connections[writer].execute(UPSERT, (writer, value()))

    def take(self, writer: int) -> None:
        """Read a row and change it, in one transaction."""
        connection = self._connections[writer]
        connection.execute("SELECT value FROM bare WHERE id = %s FOR UPDATE", (writer,)).fetchall()
        connection.execute("UPDATE bare SET value = %s WHERE id = %s", (value(), writer))
        connection.commit()

    def autocommit(self) -> None:
        for connection in self._connections:
            connection.autocommit = True

    def close(self) -> None:
        for connection in self._connections:
            connection.close()


@contextmanager
def bare(url: str, writers: int) -> Iterator[Bare]:
    connections = Bare(url, writers)
    yield connections
    connections.close()


@contextmanager
def sessions_of(place: str, writers: int) -> Iterator[tuple[Write, Write]]:
    """Open the store at `place`. Yield functions that write to the session of a writer, and take it."""
    store = open_store(place)
    settings = SessionSettings("", 3600.0, Quota())
    epochs = [store.create(f"session {writer}", settings, {("data", "key"): value()}) for writer in range(writers)]

    def write(writer: int) -> None:
        store.write(f"session {writer}", epochs[writer], {("data", "key"): value()})

    def take(writer: int) -> None:
        assert store.take(f"session {writer}") is not None

    yield write, take
    store.close()


@contextmanager
def worker_at(place: str | None, writers: int) -> Iterator[Write]:
    """Start a worker, with the store at `place`. Yield a function that calls it to write to the session of a writer."""
    flags = ["--store", place] if place else []
    with Client.start(adapter="echo", flags=flags) as client:
        for writer in range(writers):
            client.call("create_session", {"durable": place is not None}, session_id=f"session {writer}")

        def write(writer: int) -> None:
            client.call("update_session_data", {"key": "key", "value": value()}, session_id=f"session {writer}")

        yield write


def contenders(section: str, writers: int, server: PostgresServer, folder: Path, stack: ExitStack) -> list[Contender]:
    url = server.url(server.create_database())
    sqlite = f"sqlite:{folder / f'{section}-{writers}.db'}"
    connections = stack.enter_context(bare(url, writers))
    if section == "worker":
        rows = {
            BARE: connections.transaction,
            "a worker with PostgreSQL": stack.enter_context(worker_at(url, writers)),
            "a worker with SQLite": stack.enter_context(worker_at(sqlite, writers)),
            "a worker, in memory": stack.enter_context(worker_at(None, writers)),
        }
    else:
        in_postgres = stack.enter_context(sessions_of(url, writers))
        in_sqlite = stack.enter_context(sessions_of(sqlite, writers))
        which = section == "take"
        rows = {
            BARE: connections.take if which else connections.transaction,
            "the store on PostgreSQL": in_postgres[which],
            "the store on SQLite": in_sqlite[which],
        }
    if section == "store":
        alone = stack.enter_context(bare(url, writers))
        alone.autocommit()
        rows["bare psycopg, a statement each"] = alone.statement
    elif section == "take":
        for writer in range(writers):
            connections.transaction(writer)  # the row that it takes
    return [Contender(f"{section}, {name}", writers, write) for name, write in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", choices=["store", "take", "worker"])
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--folder", default="/tmp", help="on a real disk, and one that other users may enter")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    rounds, changes = (11, 96) if options.quick else (25, 192)
    figures = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, PostgresServer(parent=options.folder) as server:
        for section, writers in itertools.product(("store", "take", "worker"), options.writers):
            if options.only in (None, section):
                with ExitStack() as stack:
                    rows = contenders(section, writers, server, Path(folder), stack)
                    for number in range(rounds + 1):
                        for row in rows[number % 2 :] + rows[: number % 2]:
                            row.run(server, changes * (1 if writers == 1 else 4))
                    figures += report(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


def report(rows: list[Contender]) -> list[dict[str, object]]:
    """Print and return the figures of a section; the first round was for warming up."""
    baseline = rows[0].times[1:]
    figures = []
    for row in rows:
        ratio = statistics.median(own / other for own, other in zip(row.times[1:], baseline, strict=True))
        us, commits = statistics.median(row.times[1:]), statistics.median(row.transactions[1:])
        print(
            f"{row.name:44}{row.writers:3} writers{us:9.0f} us{ratio:7.2f} x bare{commits:7.2f} transactions",
            flush=True,
        )
        figures.append({"name": row.name, "writers": row.writers, "us": us, "ratio": ratio, "transactions": commits})
    return figures


if __name__ == "__main__":
    main()
