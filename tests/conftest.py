"""Fixtures that more than one test file uses."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# What every worker sets for itself; here for the tests that run DSPy in this process.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
# Workers report whether there is a key for Gemini: the same on every machine.
os.environ.pop("GEMINI_API_KEY", None)
os.environ.pop("GOOGLE_API_KEY", None)
sys.path.insert(0, str(Path(__file__).parent / "support"))

from peer import Peer  # found through the line above

if TYPE_CHECKING:
    from postgres_server import PostgresServer

# A shell ignores these signals in what it runs in the background, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
# Nothing timed is asserted, here neither.
settings.register_profile("untimed", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """Leave what was collected out of garbage collections, each of which would take 0.1 s of all tests' time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in what a test wrote: reports that pass between processes are UTF-8."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture
def start_peer() -> Iterator[Callable[..., Peer]]:
    """Return a function that starts workers, which end after the test."""
    peers: list[Peer] = []

    def start(*flags: str, **options: object) -> Peer:
        peers.append(Peer(*flags, **options))
        return peers[-1]

    yield start
    for peer in peers:
        peer.finish()


@pytest.fixture
def peer(start_peer: Callable[..., Peer]) -> Peer:
    """Return a worker with the echo adapter."""
    return start_peer()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """An event that handlers wait for; it is set at the end of the test, so that none is left waiting."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def repository() -> Path:
    return Path(__file__).parent.parent


@pytest.fixture(scope="session")
def support() -> str:
    """Return the folder of the adapters that tests start workers with."""
    return str(Path(__file__).parent / "support")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Return a PostgreSQL server that all tests of this process share, at a Unix socket and by TCP."""
    postgres_server = pytest.importorskip("postgres_server", reason="psycopg is not installed")
    if not postgres_server.is_installed():
        pytest.skip(postgres_server.MISSING)
    with postgres_server.PostgresServer(tcp=True, fsync=False) as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """Return the name of an empty database of `postgres`, which is deleted after the test."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)
