"""What sessions do when their store says that another worker has taken them, or that it does not know what it has."""

from __future__ import annotations

import threading

import pytest

import memory_store
from bridge import Dispatcher, errors
from bridge.adapters import echo
from bridge.worker.stores import open_store
from peer import wait_until
from store_workers import ask, call


class Forgetful(memory_store.MemoryStore):
    """A store whose connection can be lost in a change, before or after it is made."""

    lost = ""

    def create(self, *args):
        return self._change(super().create, *args)

    def write(self, *args):
        return self._change(super().write, *args)

    def _change(self, change, *args):
        result = None if self.lost == "before" else change(*args)
        if self.lost:
            raise errors.OutcomeUnknown.of("the connection was lost")
        return result


@pytest.fixture
def open_worker():
    """Return a function that creates workers, which are closed after the test."""
    workers = []

    def open_worker(store, **options):
        workers.append(Dispatcher(echo.adapter, store=store, **options))
        return workers[-1]

    yield open_worker
    for worker in workers:
        worker.close()


@pytest.fixture(params=["memory", "postgresql"])
def open_stores(request):
    """Return a function that opens a store of the same sessions each time."""
    if request.param == "memory":
        store = memory_store.MemoryStore()
        return lambda: store
    url = request.getfixturevalue("postgres").url(request.getfixturevalue("database"))
    return lambda: open_store(url)


def test_a_session_that_another_worker_takes_is_dropped_at_once(open_stores, open_worker):
    """The old owner does not show it any more, and its next call has what the other has written."""
    first, second = open_worker(open_stores()), open_worker(open_stores())
    ask(first, "create_session", durable=True)
    ask(first, "create_session", "other", durable=True)
    ask(first, "update_session_data", key="k", value="first")
    # The notification may come before the worker listens, at its start.
    wait_until(lambda: ask(second, "update_session_data", key="k", value=1) and first.sessions.find("s") is None)
    assert first.sessions.find("other") is not None
    ask(first, "get_session_data", "other")
    assert len(first.sessions) == 1
    assert ask(first, "get_session_data")["data"] == {"k": 1}
    assert ask(first, "list_sessions")["total_count"] == 2


def test_a_session_that_another_worker_deletes_is_dropped_at_once(open_worker, request):
    """A new one of its name is empty."""
    url = request.getfixturevalue("postgres").url(request.getfixturevalue("database"))
    first, second = open_worker(open_store(url)), open_worker(open_store(url))
    ask(first, "create_session", durable=True)
    ask(first, "update_session_data", key="k", value="first")
    listening = "SELECT count(*) FROM pg_stat_activity WHERE query ILIKE 'listen %%' AND datname = %s"
    server, database = request.getfixturevalue("postgres"), request.getfixturevalue("database")
    wait_until(lambda: server.execute(listening, database) == [(2,)])
    for payload in ("nonsense", "", "7", f"{2**70} zz", "9 ff"):  # anybody may send it
        server.execute("SELECT pg_notify('dspex_bridge', %s)", payload, database=database)
    ask(second, "cleanup_session")
    wait_until(lambda: first.sessions.find("s") is None)
    assert ask(first, "get_session_data")["data"] == {}


def test_an_old_notification_changes_nothing(open_worker):
    """That of an epoch before the session was taken back, or of a session in memory."""
    store = memory_store.MemoryStore()
    worker = open_worker(store)
    ask(worker, "create_session", durable=True)
    epoch = worker.sessions.find("s").epoch
    ask(worker, "update_session_data", "memory", key="k", value=1)
    for on_taken in store._watchers:
        on_taken("s", epoch)
        on_taken("memory", epoch + 1)
        on_taken("unknown", epoch + 1)
    assert worker.sessions.find("s") is not None
    assert ask(worker, "get_session_data", "memory")["data"] == {"k": 1}


@pytest.mark.parametrize(("lost", "data"), [("before", {"k": 1}), ("after", {"k": 2})])
def test_after_a_change_of_unknown_outcome_the_session_is_loaded_again(open_worker, lost, data):
    """The error says so, and the copy in memory is not used any more."""
    store = Forgetful()
    worker = open_worker(store)
    ask(worker, "create_session", durable=True)
    ask(worker, "update_session_data", key="k", value=1)
    store.lost = lost
    reply = call(worker, "update_session_data", key="k", value=2)
    assert (reply["code"], reply["recovery"], reply["details"]) == (
        "store_failed",
        "backoff_retry",
        {"outcome": "unknown"},
    )
    assert call(worker, "create_session", ttl_s=7)["code"] == "store_failed"
    store.lost = ""
    assert ask(worker, "get_session_data")["data"] == data
    assert ask(worker, "get_session")["ttl_s"] == (7 if lost == "after" else 3600)


@pytest.mark.parametrize("lost", ["before", "after"])
def test_a_session_in_memory_is_kept_if_it_is_unknown_whether_it_became_durable(open_worker, lost):
    """Asking again makes it durable, or finds it."""
    store = Forgetful()
    worker = open_worker(store)
    ask(worker, "update_session_data", key="k", value=1)
    store.lost = lost
    assert call(worker, "create_session", durable=True)["code"] == "store_failed"
    store.lost = ""
    assert ask(worker, "get_session_data")["data"] == {"k": 1}
    reply = call(worker, "create_session", durable=True)
    assert reply["success"] or (lost, reply["code"]) == ("after", "session_lost")
    assert ask(worker, "create_session", durable=True)["durable"]
    assert ask(worker, "get_session_data")["data"] == {"k": 1}


def test_calls_behind_a_change_of_unknown_outcome_are_refused(open_worker):
    """They were meant for the copy in memory; their caller may repeat them."""
    store = Forgetful()
    worker = open_worker(store)
    ask(worker, "create_session", durable=True)
    gate, entered, codes = threading.Event(), threading.Event(), {}
    write = store.write

    def wait(*args):
        entered.set()
        assert gate.wait(60)
        return write(*args)

    store.write = wait
    store.lost = "after"

    def update(number):
        codes[number] = call(worker, "update_session_data", key="k", value=number)["code"]

    threads = [threading.Thread(target=update, args=(number,)) for number in range(2)]
    threads[0].start()
    assert entered.wait(60)
    threads[1].start()
    wait_until(lambda: len(worker.calls.open) == 2)
    gate.set()
    for thread in threads:
        thread.join()
    assert codes == {0: "store_failed", 1: "session_lost"}
