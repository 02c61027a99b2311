"""The contract of every store: SQLite, PostgreSQL, and a store in memory that implements only the protocol."""

from __future__ import annotations

import itertools
import json

import pytest

from bridge import Dispatcher, Quota, errors
from bridge.adapters.dspy import adapter
from bridge.records import SessionSettings
from bridge.worker import stores
from bridge.worker.stores.stored_records import StoredRecords

SETTINGS = SessionSettings("2026-01-01T00:00:00.000Z", 5.0, Quota(3, None))
QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
ids = itertools.count(1)


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def place(request, tmp_path, monkeypatch):
    """Return where the workers of one test store their sessions."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").url(request.getfixturevalue("database"))
    monkeypatch.setitem(stores.SCHEMES, "memory", ("memory:NAME", "memory_store"))
    return f"{request.param}:{tmp_path / 'store.db'}"


@pytest.fixture
def open_store(place):
    """Return a function that opens the store at `place`, as each worker does."""
    opened = []

    def open_store():
        opened.append(stores.open_store(place))
        return opened[-1]

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store):
    return open_store()


def test_a_session_comes_back_as_it_was_written(open_store):
    """Settings and records, in the order in which they were first written."""
    first = open_store()
    epoch = first.create("s", SETTINGS, {("data", "a"): b"1", ("data", "b"): b"2"})
    changed = SessionSettings(SETTINGS.created_at, 7.0, Quota(None, 9))
    first.write("s", epoch, {("data", "a"): None, ("data", "c"): b"", ("data", "b"): b"3"}, changed)
    taken = open_store().take("s")
    assert list(taken.records.items()) == [(("data", "b"), b"3"), (("data", "c"), b"")]
    assert taken.settings == changed
    assert taken.epoch > epoch


def test_the_last_to_take_a_session_owns_it(open_store):
    """A write with an earlier epoch changes neither records nor settings."""
    first, second = open_store(), open_store()
    epoch = first.create("s", SETTINGS, {})
    assert first.is_owner("s", epoch)
    taken = second.take("s")
    assert second.is_owner("s", taken.epoch)
    assert not first.is_owner("s", epoch)
    for changes, settings in (({("data", "a"): b"late"}, None), ({}, SessionSettings("", 1.0, Quota()))):
        with pytest.raises(errors.SessionLost):
            first.write("s", epoch, changes, settings)
    assert first.take("s").records == {}


def test_an_id_is_free_once_its_session_is_dropped(store):
    """A new session with the id has another epoch."""
    epoch = store.create("s", SETTINGS, {})
    with pytest.raises(errors.SessionLost):
        store.create("s", SETTINGS, {})
    assert store.drop("s", None) == 0
    assert store.create("s", SETTINGS, {}) != epoch
    assert not store.is_owner("s", epoch)


def test_sessions_are_described_without_being_taken(store):
    """They are ordered by id, with the number of records of one kind and the bytes of all."""
    records = {("program", "é"): b"12", ("program", "q"): b"", ("data", "k"): b"345"}
    epochs = {name: store.create(name, SETTINGS, records if name == "b" else {}) for name in "bca"}
    found = store.find("b", "program")
    assert (found.session_id, found.epoch, found.ttl) == ("b", epochs["b"], 5.0)
    assert (found.created_at, found.counted_records, found.bytes) == (SETTINGS.created_at, 2, 9)
    assert store.find("b", None).counted_records == 0
    listed, total = store.list_sessions(2, "data")
    assert [(each.session_id, each.counted_records) for each in listed] == [("a", 0), ("b", 1)]
    assert total == 3
    assert store.drop("b", "program") == 2
    assert store.is_owner("a", epochs["a"])


def test_the_records_of_another_worker_can_be_read(store):
    """Its session is not taken, and the copy cannot be changed."""
    epoch = store.create("s", SETTINGS, {("data", "b"): b"1", ("data", "a"): b"2"})
    records = StoredRecords("s", store)
    values = records.of("data")
    assert dict(values) == {"b": b"1", "a": b"2"}
    store.write("s", epoch, {("data", "c"): b"3"})
    assert (len(values), list(values), values["c"], values.get("d")) == (3, ["b", "a", "c"], b"3", None)
    assert not StoredRecords("unknown", store).of("data")
    with pytest.raises(errors.NotAllowed):
        records.put("data", "k", b"")
    with pytest.raises(errors.NotAllowed):
        records.remove("data", "a")


def test_what_a_store_does_not_have_is_none_or_nothing(store):
    assert store.take("s") is None
    assert store.find("s", "program") is None
    assert store.value("s", "data", "k") is None
    assert store.names("s", "data") == []
    assert store.list_sessions(5, "program") == ([], 0)
    assert store.drop("s", "program") == 0
    assert not store.is_owner("s", 1)
    with pytest.raises(errors.SessionLost):
        store.write("s", 1, {})


def ask(worker, command, /, **args):
    request = {"id": next(ids), "command": command, "args": args, "session_id": "s"}
    reply = json.loads(worker.call(json.dumps(request).encode(), 60))
    assert reply["success"], reply
    return reply["result"]


def test_workers_share_sessions_through_any_store(open_store):
    """Programs, data and quota of one worker are visible in the next."""
    workers = []
    for _ in range(2):
        workers.append(Dispatcher(adapter, store=open_store()))
    first, second = workers
    ask(first, "create_session", durable=True, quota={"programs": 1})
    ask(first, "create_program", id="qa", signature=QA)
    ask(first, "update_session_data", key="k", value=7)
    assert ask(second, "get_session")["programs"] == 1
    assert [entry["id"] for entry in ask(second, "list_programs")["programs"]] == ["qa"]
    assert ask(second, "get_session_data")["data"] == {"k": 7}
    assert ask(second, "get_session")["quota"] == {"programs": 1, "bytes": None}
    assert ask(second, "cleanup_session")["programs_removed"] == 1
    assert ask(first, "list_sessions")["sessions"] == []


@pytest.mark.parametrize("place", ["store.db", "sqlite", "sqlite:", "sqlite::memory:", "redis://x", ""], indirect=False)
def test_an_unknown_kind_of_store_is_refused(place):
    """The error shows the known forms."""
    with pytest.raises(errors.StoreFailed, match="sqlite:PATH"):
        stores.open_store(place)
