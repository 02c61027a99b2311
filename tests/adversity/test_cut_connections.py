"""Connections to a PostgreSQL server that are cut at every point of an exchange: what the store says is the truth."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from bridge import Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores import open_store
from bridge.worker.stores.protocol import Store

cutting_proxy = pytest.importorskip("cutting_proxy")
Cut = cutting_proxy.Cut

SETTINGS = SessionSettings("2026-01-01T00:00:00.000Z", 5.0, Quota())
MOST = 8  # exchanges of one call of the store
KEY = ("data", "key")


@pytest.fixture
def proxy(postgres):
    proxy = cutting_proxy.CuttingProxy(postgres.folder, postgres.port)
    yield proxy
    proxy.close()


@pytest.fixture
def store(postgres, database, proxy) -> Iterator[Store]:
    """Return a store behind the proxy."""
    store = open_store(postgres.url(database, host=str(proxy.folder)))
    yield store
    store.close()


@pytest.fixture
def observer(postgres, database) -> Iterator[Store]:
    """Return a store of the same database that nothing disturbs."""
    store = open_store(postgres.url(database))
    yield store
    store.close()


def outcome(do: Callable[[], object]) -> bool:
    """Return whether a change was made, as its caller is told."""
    try:
        do()
    except errors.StoreFailed:
        return False
    return True


def each_cut(proxy, where, do: Callable[[int], None]) -> int:
    """Cut the first exchange of do(1), the second of do(2), … until one has fewer. Return how many were cut."""
    for exchange in range(1, MOST):
        proxy.cut(where, exchange)
        do(exchange)
        if not proxy.stop_cutting():
            return exchange - 1
    pytest.fail("a call of the store makes too many exchanges")


@pytest.mark.parametrize("where", Cut)
def test_the_outcome_of_a_write_is_the_truth(proxy, store, observer, where):
    """A request that arrives late, after the outcome was reported, changes nothing."""
    epoch = store.create("s", SETTINGS, {KEY: b"0"})

    def write(number: int) -> None:
        before, after = observer.value("s", *KEY), str(number).encode()
        expected = after if outcome(lambda: store.write("s", epoch, {KEY: after})) else before
        assert observer.value("s", *KEY) == expected
        proxy.release()
        assert observer.value("s", *KEY) == expected

    assert each_cut(proxy, where, write) >= 1
    store.write("s", epoch, {KEY: b"end"})
    assert observer.value("s", *KEY) == b"end"


@pytest.mark.parametrize("where", Cut)
def test_the_outcome_of_creating_and_dropping_is_the_truth(proxy, store, observer, where):
    """A session exists if the store says so."""

    def create_and_drop(number: int) -> None:
        name = f"s{number}"
        exists = outcome(lambda: store.create(name, SETTINGS, {KEY: b"0"}))
        proxy.release()
        assert (observer.find(name, None) is not None) == exists

    def drop(number: int) -> None:
        name = f"t{number}"
        observer.create(name, SETTINGS, {KEY: b"0"})
        is_gone = outcome(lambda: store.drop(name, "data"))
        proxy.release()
        assert (observer.find(name, None) is None) == is_gone

    assert each_cut(proxy, where, create_and_drop) >= 1
    assert each_cut(proxy, where, drop) >= 1


@pytest.mark.parametrize("where", Cut)
def test_a_session_that_was_taken_has_one_owner(proxy, store, observer, where):
    """If the store says that it could not take the session, its owner may write; else the owner may not."""

    def take(number: int) -> None:
        name = f"s{number}"
        epoch = observer.create(name, SETTINGS, {KEY: b"0"})
        taken = []
        is_taken = outcome(lambda: taken.append(store.take(name)))
        proxy.release()
        assert observer.is_owner(name, epoch) == (not is_taken)
        if is_taken:
            assert taken[0].records == {KEY: b"0"}
            store.write(name, taken[0].epoch, {KEY: b"1"})

    assert each_cut(proxy, where, take) >= 1


@pytest.mark.parametrize("where", Cut)
def test_changes_that_share_a_transaction_have_one_outcome_each(proxy, store, observer, where):
    """Eight writers, whose connection is cut while they write."""
    names = [f"s{number}" for number in range(8)]
    epochs = [store.create(name, SETTINGS, {KEY: b"0"}) for name in names]
    expected: dict[str, bytes] = dict.fromkeys(names, b"0")

    def writer(name: str, epoch: int) -> None:
        for number in range(20):
            value = str(number).encode()
            if outcome(lambda value=value: store.write(name, epoch, {KEY: value})):
                expected[name] = value

    threads = [threading.Thread(target=writer, args=each) for each in zip(names, epochs, strict=True)]
    proxy.cut(where, 4)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.stop_cutting()
    proxy.release()
    assert {name: observer.value(name, *KEY) for name in names} == expected


@pytest.mark.parametrize("where", [where for where in Cut if where is not Cut.LATE])
def test_reads_go_on_with_another_connection(proxy, store, where):
    """A read changes nothing, so it is made again."""
    epoch = store.create("s", SETTINGS, {KEY: b"0"})
    reads = {
        "find": lambda: store.find("s", "data").counted_records == 1,
        "names": lambda: list(store.names("s", "data")) == ["key"],
        "value": lambda: store.value("s", *KEY) == b"0",
        "owner": lambda: store.is_owner("s", epoch),
    }
    for read in reads.values():
        assert read()  # connects

        def check(number: int, read=read) -> None:
            assert read()

        assert each_cut(proxy, where, check) >= 1


def test_the_question_for_an_outcome_is_asked_until_it_is_answered(proxy, store, observer):
    """The answer of a commit is lost, and then the connections that ask for it."""
    epoch = store.create("s", SETTINGS, {KEY: b"0"})
    for where in (Cut.UNANSWERED, Cut.SENT, Cut.PARTLY_SENT):
        before, after = observer.value("s", *KEY), where.name.encode()
        proxy.cut(where, 1, times=4)
        expected = after if outcome(lambda after=after: store.write("s", epoch, {KEY: after})) else before
        assert proxy.stop_cutting()
        assert observer.value("s", *KEY) == expected
