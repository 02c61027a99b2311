"""Fixtures of the tests of the worker."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from bridge import Dispatcher, Options
from bridge.adapters.dspy import adapter as dspy_adapter
from bridge.worker.stores.sqlite import SQLiteStore
from session_adapters import make_adapter
from session_values import Workers
from stats_hosts import Host


@pytest.fixture
def workers(tmp_path):
    workers = Workers(tmp_path / "store.db")
    yield workers
    workers.close()


@pytest.fixture
def clock(monkeypatch):
    """Return the clock by which sessions age; set `.now`."""

    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    clock = Clock()
    for module in ("session", "sessions"):
        monkeypatch.setattr(f"bridge.worker.{module}.time", clock)
    return clock


@pytest.fixture
def make():
    def make(**options):
        return Dispatcher(make_adapter(), Options(**options))

    return make


@pytest.fixture
def host(gate):
    return Host(gate)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def open_worker(path):
    """Return a function that creates dispatchers on stores of one file, like separate processes."""
    stores = []

    def open_worker(adapter=dspy_adapter, **options):
        stores.append(SQLiteStore(path))
        return Dispatcher(adapter, Options(**options), store=stores[-1])

    yield open_worker
    for store in stores:
        store.close()


@pytest.fixture
def lock(path):
    """Return a context manager that locks the store's file as another program might: `with lock():`."""

    @contextlib.contextmanager
    def lock():
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()

    return lock


@pytest.fixture
def full(path):
    """Return a context manager in which long writes fail as on a full disk, with their transaction: `with full():`."""

    @contextlib.contextmanager
    def full():
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON records WHEN length(new.value) > 50000"
                " BEGIN SELECT RAISE(ROLLBACK, 'database or disk is full'); END"
            )
            yield
            other.execute("DROP TRIGGER full")

    return full
