"""Kill workers that share a store while they write, and check that no acknowledged change is lost.

    python tests/support/kill_writers.py --seconds 60 [--json FILE]

Each writer has a durable session, and writes one number to two of its keys in one call, repeatedly,
through any worker. Whenever its worker was killed, and at the end, it reads both: they must be equal,
not below the last acknowledged number, and not above the last number sent.
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
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bridge import Client, errors


@dataclass
class Count:
    """The results of a run. lost, half, invented: must stay 0."""

    kills: int = 0
    acknowledged: int = 0
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

    def __init__(self, store: Path) -> None:
        self._flags = ("--store", f"sqlite:{store}")
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
        return Client.start(adapter="echo", flags=self._flags, timeout=60)


class Writer:
    """A thread that writes numbers to one session, and checks them."""

    def __init__(self, number: int, workers: list[Worker], count: Count, lock: threading.Lock):
        self._session = f"writer {number}"
        self._random = random.Random(number)
        self._workers = workers
        self._count, self._lock = count, lock
        self._sent = self._acknowledged = -1
        self._is_durable = False
        self._worker = workers[number % len(workers)]

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                self._step()
            self._settled(self.check)
        except Exception as error:
            self._add(faults=[f"{self._session}: {error!r}"])

    def _step(self) -> None:
        if self._random.random() < 0.02:  # moves the session while both workers are alive
            self._worker = self._random.choice(self._workers)
        self._sent += 1
        try:
            self._write(self._sent)
        except errors.WorkerCrashed:
            self._add(unanswered=1)
            self._worker = self._random.choice(self._workers)
            self._settled(self.check)
        except errors.SessionLost:
            self._add(taken_over=1)
        else:
            self._acknowledged = self._sent
            self._add(acknowledged=1)

    def _write(self, number: int) -> None:
        client = self._worker.client
        if not self._is_durable:
            client.call("create_session", {"durable": True}, session_id=self._session, timeout=60)
            self._is_durable = True
        change = {"operation": "merge", "value": {"a": number, "b": number}}
        client.call("update_session_data", change, session_id=self._session, timeout=60)

    def _settled(self, do) -> None:
        while True:
            try:
                return do()
            except errors.WorkerCrashed:
                self._worker = self._random.choice(self._workers)

    def check(self) -> None:
        if self._acknowledged < 0:
            self._sent = -1
            return
        # Another worker may have changed the session meanwhile, so this one may have old data.
        with suppress(errors.SessionLost):
            self._worker.client.call(
                "update_session_data",
                {"key": "reader", "value": time.monotonic()},
                session_id=self._session,
                timeout=60,
            )
        data = self._worker.client.call("get_session_data", session_id=self._session, timeout=60)["data"]
        a, b = data.get("a", -1), data.get("b", -1)
        self._add(
            checked=1,
            half=int(a != b),
            lost=int(a < self._acknowledged),
            invented=int(a > self._sent),
        )

    def _add(self, **more) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self._count, name, getattr(self._count, name) + value)


def run(store: Path, seconds: float, *, writers: int = 32, slots: int = 3, rate: float = 10.0):
    """Run the test, and return its Count. rate: kills per second, at most."""
    count, lock, stop = Count(), threading.Lock(), threading.Event()
    workers = [Worker(store) for _ in range(slots)]
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

    killers = [threading.Thread(target=kill, args=(worker, turn)) for turn, worker in enumerate(workers)]
    for killer in killers:
        killer.start()
    while time.monotonic() < started + seconds and not count.faults:
        time.sleep(0.1)
    stop.set()
    for thread in (*killers, *threads):
        thread.join()
    for worker in workers:
        worker.client.stop()
    database = sqlite3.connect(store)
    (verdict,) = database.execute("PRAGMA integrity_check").fetchone()
    database.close()
    if verdict != "ok":
        count.faults.append(f"integrity_check: {verdict}")
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=32)
    parser.add_argument("--workers", type=int, default=3, help="workers that share the store")
    parser.add_argument("--rate", type=float, default=10.0, help="kills a second")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a real disk, not a tmpfs
        count = run(
            Path(folder) / "store.db",
            options.seconds,
            writers=options.writers,
            slots=options.workers,
            rate=options.rate,
        )
    for name, value in asdict(count).items():
        print(f"{name:14}{value}")
    if options.json:
        Path(options.json).write_text(json.dumps(asdict(count), indent=1))
    return 0 if count.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
