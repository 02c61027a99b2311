"""What a shared store does as sessions and workers become more; the sections of `scaling.py` about it."""

from __future__ import annotations

import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pool import private

from bridge import Client, Pool, Quota
from bridge.records import SessionSettings
from bridge.worker.stores import open_store

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import postgres_server  # found through the line above

Row = dict[str, Any]
CALLERS = 64
SETTINGS = SessionSettings("", 3600.0, Quota())
turn = itertools.count()


def value(size: int = 200) -> bytes:
    """Return a new value each time."""
    return str(next(turn)).encode().ljust(size, b".")


class Place:
    """A store for the workers of this machine. name: for `--store`. kind: the database."""

    def __init__(self, kind: str, name: str, size: Callable[[], int], connections: Callable[[], list[int]]) -> None:
        self.kind = kind
        self.name = name
        self.size = size  # bytes on the disk
        self.connections = connections  # the processes of the server that serve one each


@contextmanager
def places(only: str | None = None) -> Iterator[list[Place]]:
    """Yield an empty SQLite file, and an empty database of a PostgreSQL server that is started for it."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder, ExitStack() as stack:
        file = Path(folder, "store.db")
        found = [Place("SQLite", f"sqlite:{file}", lambda: file.stat().st_size, list)]
        if postgres_server.is_installed():
            server = stack.enter_context(postgres_server.PostgresServer())
            database = server.create_database()

            def size() -> int:
                return int(server.execute(f"SELECT pg_database_size('{database}')")[0][0])

            def connections() -> list[int]:
                rows = server.execute(f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}'")
                return [pid for (pid,) in rows]

            found.append(Place("PostgreSQL", server.url(database), size, connections))
        yield [place for place in found if only in (None, place.kind)]


def stored(quick: bool) -> Iterator[Row]:
    """Sessions in the store, with one record of 200 bytes: the time to take a random one, and to change it."""
    with places() as all_places:
        for place in all_places:
            store, before, there = open_store(place.name), place.size(), 0
            for number in (1_000, 10_000) if quick else (10_000, 100_000, 1_000_000):

                def create(session: int, create: Any = store.create) -> None:
                    create(f"session-{session}", SETTINGS, {("data", "key"): value()})

                with ThreadPoolExecutor(CALLERS) as threads:
                    started = time.perf_counter()
                    made = sum(1 for _ in threads.map(create, range(there, number), chunksize=100))
                    creating = (time.perf_counter() - started) / made
                there = number
                names = [f"session-{random.randrange(number)}" for _ in range(500)]
                taken, written = [], []
                for name in names:
                    started = time.perf_counter()
                    session = store.take(name)
                    taken.append(time.perf_counter() - started)
                    assert session is not None
                    started = time.perf_counter()
                    store.write(name, session.epoch, {("data", "key"): value()})
                    written.append(time.perf_counter() - started)
                yield {
                    "store": place.kind,
                    "sessions": number,
                    "bytes each": (place.size() - before) / number,
                    f"created by {CALLERS}, µs each": creating * 1e6,
                    "taken, p50 µs": statistics.median(taken) * 1e6,
                    "p99 µs": sorted(taken)[-5] * 1e6,
                    "changed, p50 µs": statistics.median(written) * 1e6,
                }
            store.close()


def writes(quick: bool) -> Iterator[Row]:
    """Durable changes a second of 64 callers with a session each, by workers, beside changes in memory."""
    for count in (1, 2, 4) if quick else (1, 2, 4, 8, 16):
        row: Row = {"workers": count}
        with places() as all_places:
            for kind, flags in (
                ("in memory", []),
                *((place.kind, ["--store", place.name]) for place in all_places),
            ):
                with Pool(count, adapter="echo", flags=flags) as pool:
                    row[f"{kind}, changes/s"] = changes(pool, bool(flags), 20 if quick else 80)
        yield row


def changes(pool: Pool, is_durable: bool, each: int) -> float:
    """Return changes a second of CALLERS callers that make so many each."""

    def create(caller: int) -> None:
        pool.call("create_session", {"durable": is_durable}, session_id=f"caller-{caller}")

    def change(caller: int) -> None:
        for _ in range(each):
            pool.call("update_session_data", {"key": "key", "value": value()}, session_id=f"caller-{caller}")

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(create, range(CALLERS)))
        list(threads.map(change, range(CALLERS)))
        started = time.perf_counter()
        list(threads.map(change, range(CALLERS)))
        return CALLERS * each / (time.perf_counter() - started)


def connections(quick: bool) -> Iterator[Row]:
    """Connections to PostgreSQL once each worker has changed a durable session, and the server's memory for them."""
    for count in (1, 4) if quick else (1, 4, 16, 32):
        with places("PostgreSQL") as all_places:
            for place in all_places:
                with Pool(count, adapter="echo", flags=["--store", place.name]) as pool:
                    changes(pool, True, 2)
                    pids = place.connections()
                    yield {
                        "workers": count,
                        "connections": len(pids),
                        "for a worker": len(pids) / count,
                        "MiB of the server for one": sum(map(private, pids)) / max(len(pids), 1),
                    }


def moves(quick: bool) -> Iterator[Row]:
    """A durable session moves to another worker: its first call there beside the next one, in ms."""
    with places() as all_places:
        for place, kib in itertools.product(all_places, (1, 100, 1024)):
            with ExitStack() as stack:
                flags = ["--store", place.name]
                old, new = (stack.enter_context(Client.start(adapter="echo", flags=flags)) for _ in range(2))
                first, later = [], []
                for number in range(10 if quick else 40):
                    session = f"session-{kib}-{number}"
                    old.call("create_session", {"durable": True}, session_id=session)
                    args = {"key": "key", "value": os.urandom(kib * 1024)}
                    old.call("update_session_data", args, session_id=session)
                    for times in (first, later):
                        started = time.perf_counter()
                        new.call("get_session_data", session_id=session)
                        times.append(time.perf_counter() - started)
            yield {
                "store": place.kind,
                "KiB of the session": kib,
                "first call": statistics.median(first) * 1000,
                "next call": statistics.median(later) * 1000,
            }


SECTIONS = {section.__name__: section for section in (stored, writes, connections, moves)}
