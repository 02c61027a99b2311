"""Kill workers that share a store while they write, and check that no acknowledged change is lost.

    python tests/support/kill_writers.py --seconds 60 [--postgres] [--json FILE]

Each writer has a durable session, and writes one number to two of its keys in one call, repeatedly,
through any worker. Whenever a call has failed, and at the end, it reads both: they must be equal, and be
the last number that is known to be stored or the one that was sent in the call that failed.

With --postgres, the server is killed, restarted and frozen as well, and its connections are ended.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bridge import Client, errors
from bridge.host.template import Template

if TYPE_CHECKING:
    from postgres_server import PostgresServer

FROZEN = 0.5  # seconds
AGAIN = 0.05  # seconds between attempts of a call that fails
WAIT = 60.0  # seconds


class Disturbance(NamedTuple):
    """What happens to the store from time to time. every: seconds."""

    name: str
    every: float
    happen: Callable[[], object]


@dataclass
class Count:
    """The results of a run. lost, half, invented: must stay 0.

    refused: calls that raised StoreFailed. unanswered: calls whose worker was killed. taken_over: calls that raised
    SessionLost.
    """

    kills: int = 0
    disturbances: dict[str, int] = field(default_factory=dict)
    acknowledged: int = 0
    refused: int = 0
    unanswered: int = 0
    taken_over: int = 0
    checked: int = 0
    lost: int = 0
    half: int = 0
    invented: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.half or self.invented or self.faults)


class Worker:
    """A worker process that is replaced whenever it is killed."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._replacing = threading.Lock()
        self._client = self._start()

    @property
    def client(self) -> Client:
        """Return the client of the running process; wait while it is being replaced."""
        with self._replacing:
            return self._client

    def kill(self) -> None:
        with self._replacing:
            self._client.kill()
            self._client = self._start()

    def _start(self) -> Client:
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return self._template.connect(timeout=WAIT)
            except errors.BridgeError:  # the store may not be there at the moment
                if time.monotonic() > deadline:
                    raise


class Writer:
    """A thread that writes numbers to one session, and checks them.

    stored: the last number that is known to be stored. sent: the last one that was sent.
    """

    def __init__(self, number: int, workers: list[Worker], count: Count, lock: threading.Lock):
        self._session = f"writer {number}"
        self._random = random.Random(number)
        self._workers = workers
        self._count, self._lock = count, lock
        self._stored = self._sent = -1
        self._worker = workers[number % len(workers)]

    def run(self, stop: threading.Event) -> None:
        try:
            self._settled(lambda: self._call("create_session", {"durable": True}))
            while not stop.is_set():
                self._step()
            self._settled(self._check)
        except Exception as error:
            self._add(faults=[f"{self._session}: {error!r}"])

    def _step(self) -> None:
        if self._random.random() < 0.02:  # moves the session while its worker is alive
            self._worker = self._random.choice(self._workers)
        self._sent += 1
        try:
            self._write({"operation": "merge", "value": {"a": self._sent, "b": self._sent}})
        except errors.SessionLost:
            self._add(taken_over=1)
        except (errors.WorkerCrashed, errors.StoreFailed) as error:
            is_refused = isinstance(error, errors.StoreFailed)
            self._add(refused=int(is_refused), unanswered=int(not is_refused))
            self._worker = self._random.choice(self._workers)
            self._settled(self._check)
        else:
            self._stored = self._sent
            self._add(acknowledged=1)

    def _check(self) -> None:
        # Another worker may have changed the session meanwhile, so this one may have old data.
        with suppress(errors.SessionLost):
            self._write({"key": "reader", "value": time.monotonic()})
        data = self._call("get_session_data", {})["data"]
        a, b = data.get("a", -1), data.get("b", -1)
        self._add(
            checked=1,
            half=int(a != b),
            lost=int(a < self._stored),
            invented=int(a > self._stored and a != self._sent),
        )
        self._stored = a

    def _settled(self, do: Callable[[], object]) -> None:
        while True:
            try:
                do()
                return
            except errors.SessionLost:
                self._add(taken_over=1)
            except errors.WorkerCrashed:
                self._worker = self._random.choice(self._workers)
            except errors.StoreFailed:
                self._worker = self._random.choice(self._workers)
                time.sleep(AGAIN)

    def _write(self, change: dict[str, object]) -> None:
        self._call("update_session_data", change)

    def _call(self, command: str, args: dict[str, object]):
        return self._worker.client.call(command, args, session_id=self._session, timeout=WAIT)

    def _add(self, **more) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self._count, name, getattr(self._count, name) + value)


def run(
    store: str,
    seconds: float,
    *,
    writers: int = 32,
    slots: int = 3,
    rate: float = 10.0,
    disturbances: Sequence[Disturbance] = (),
) -> Count:
    """Run the test, and return its Count. rate: kills of workers per second, at most.

    Disturbances happen in the thread of the caller, one at a time.
    """
    count, lock, stop = Count(), threading.Lock(), threading.Event()
    template = Template.start(
        adapter="echo", flags=("--store", store, "--log-level", "CRITICAL")
    )  # forks a worker faster than one starts
    template.wait_ready(WAIT)
    workers = [Worker(template) for _ in range(slots)]
    all_writers = [Writer(number, workers, count, lock) for number in range(writers)]
    threads = [threading.Thread(target=writer.run, args=(stop,)) for writer in all_writers]
    started = time.monotonic()
    for thread in threads:
        thread.start()

    def kill(worker: Worker, turn: int) -> None:
        due = started + (turn + 1) / rate
        while not stop.wait(max(0.0, due - time.monotonic())):
            worker.kill()
            with lock:
                count.kills += 1
            due = time.monotonic() + slots / rate  # counted from the start, or a slow machine would only kill

    killers = [threading.Thread(target=kill, args=(worker, turn)) for turn, worker in enumerate(workers) if rate]
    for killer in killers:
        killer.start()
    due = {disturbance: started + disturbance.every for disturbance in disturbances}
    while time.monotonic() < started + seconds and not count.faults:
        for disturbance in disturbances:
            if time.monotonic() > due[disturbance]:
                disturbance.happen()
                due[disturbance] = time.monotonic() + disturbance.every
                count.disturbances[disturbance.name] = count.disturbances.get(disturbance.name, 0) + 1
        time.sleep(0.01)
    stop.set()
    for thread in (*killers, *threads):
        thread.join()
    for worker in workers:
        worker.client.stop()
    template.stop()
    return count


def run_sqlite(path: Path, seconds: float, **options) -> Count:
    """Run the test on an SQLite store; check the file at the end."""
    count = run(f"sqlite:{path}", seconds, **options)
    database = sqlite3.connect(path)
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    if verdict != "ok":
        count.faults.append(f"integrity_check: {verdict}")
    return count


def run_postgres(server: PostgresServer, seconds: float, *, every: float = 1.0, **options) -> Count:
    """Run the test on a new database of a server, which is disturbed in several ways.

    every: seconds between two disturbances of the server.
    """

    def kill() -> None:
        server.kill()
        server.start()

    def freeze() -> None:
        server.freeze()
        time.sleep(FROZEN)
        server.thaw()

    database = server.create_database()
    disturbances = [
        Disturbance("connections ended", every, lambda: server.disconnect(database)),
        Disturbance("server killed", 4 * every, kill),
        Disturbance("server frozen", 3 * every, freeze),
    ]
    return run(server.url(database), seconds, disturbances=disturbances, **options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--workers", type=int, default=3, help="workers that share the store")
    parser.add_argument("--rate", type=float, default=10.0, help="kills of workers a second")
    parser.add_argument("--postgres", action="store_true", help="a PostgreSQL server, in place of SQLite")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two disturbances of the server")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    load = {"writers": options.writers, "slots": options.workers, "rate": options.rate}
    if options.postgres:
        from postgres_server import PostgresServer

        with PostgresServer() as server:
            count = run_postgres(server, options.seconds, every=options.every, **load)
    else:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a real disk, not a tmpfs
            count = run_sqlite(Path(folder) / "store.db", options.seconds, **load)
    for name, value in asdict(count).items():
        print(f"{name:14}{value}")
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(count), indent=1))
    return 0 if count.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
