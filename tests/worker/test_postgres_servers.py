"""A PostgreSQL store and its server: replicas, restarts, hung servers, locks, clocks, full disks."""

from __future__ import annotations

import contextlib
import threading

import pytest

from bridge import Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores import open_store
from peer import wait_until

psycopg = pytest.importorskip("psycopg")
connection = pytest.importorskip("bridge.worker.stores.postgres.connection")
postgres_store = pytest.importorskip("bridge.worker.stores.postgres")
writer = pytest.importorskip("bridge.worker.stores.postgres.writer")

SETTINGS = SessionSettings("2026-01-01T00:00:00.000Z", 5.0, Quota())
KEY = ("data", "key")


@pytest.fixture
def url(postgres, database):
    return postgres.url(database, connect_timeout="2")


@pytest.fixture
def open_here(url):
    """Return a function that opens the store of one database, as each worker does."""
    opened = []

    def open_here():
        opened.append(open_store(url))
        return opened[-1]

    yield open_here
    for store in opened:
        store.close()


@pytest.fixture
def store(open_here):
    return open_here()


@pytest.fixture
def locked(postgres, url):
    """Return a context manager in which something else has locked a table: `with locked("records"):`."""

    @contextlib.contextmanager
    def locked(table, mode="EXCLUSIVE"):
        with psycopg.connect(url) as other:
            other.execute(f"LOCK TABLE dspex_bridge.{table} IN {mode} MODE")
            yield
            other.rollback()

    return locked


def start_side_by_side(store, threads):
    """Start threads that write: the first one begins a transaction, and all others wait for the next one."""
    threads[0].start()
    wait_until(lambda: store.commits.is_busy and not store.commits.waiting)
    for thread in threads[1:]:
        thread.start()
    wait_until(lambda: store.commits.waiting == len(threads) - 1)


def test_a_replica_is_refused_unless_its_primary_is_named_too(postgres, database, store, monkeypatch):
    """The error explains how. Of several servers, the one that takes writes is used, wherever they are named."""
    exists = "SELECT 1 FROM pg_tables WHERE schemaname = 'dspex_bridge' AND tablename = 'records'"
    standby = postgres.standby()
    try:
        wait_until(lambda: standby.execute(exists, database=database))
        with pytest.raises(errors.StoreFailed, match=r"read-only replica.*target_session_attrs=read-write"):
            open_store(standby.url(database))
        hosts, ports = f"{standby.folder},{postgres.folder}", f"{standby.port},{postgres.port}"
        both = open_store(f"postgresql://postgres@/{database}?host={hosts}&port={ports}")
        assert both.create("s", SETTINGS, {}) > 0
        both.close()
        monkeypatch.setenv("PGHOST", hosts)
        monkeypatch.setenv("PGPORT", ports)
        open_store(f"postgresql://postgres@/{database}").close()
    finally:
        standby.close()


def test_a_server_that_was_restarted_is_used_again(postgres, store):
    """The store notices before it sends anything, so no change fails."""
    epoch = store.create("s", SETTINGS, {KEY: b"0"})
    postgres.stop()
    for refused in (
        lambda: store.write("s", epoch, {KEY: b"1"}),
        lambda: store.create("t", SETTINGS, {}),
        lambda: store.take("s"),
        lambda: store.drop("s", None),
        lambda: store.list_sessions(1, None),
    ):
        with pytest.raises(errors.StoreFailed, match="cannot be reached") as raised:
            refused()
        assert not isinstance(raised.value, errors.OutcomeUnknown)
    postgres.start()
    assert store.value("s", *KEY) == b"0"
    store.write("s", epoch, {KEY: b"2"})
    assert store.is_owner("s", epoch)


def test_the_outcome_of_a_change_is_unknown_if_the_server_stays_away(postgres, store, monkeypatch):
    """A server that hangs keeps its connections open. What it was sent may still be done, but nothing later is."""
    epoch = store.create("s", SETTINGS, {KEY: b"0"})
    monkeypatch.setattr(connection, "REPLY_TIMEOUT", 0.3)
    monkeypatch.setattr(writer, "PATIENCE", 0.0)
    postgres.freeze()
    try:
        with pytest.raises(errors.OutcomeUnknown, match="did not reply within") as raised:
            store.write("s", epoch, {KEY: b"1"})
        assert raised.value.details == {"outcome": "unknown"}
    finally:
        postgres.thaw()
    monkeypatch.undo()
    taken = store.take("s")
    assert taken.records[KEY] in (b"0", b"1")
    store.write("s", taken.epoch, {KEY: b"2"})
    assert store.value("s", *KEY) == b"2"


def test_a_connection_that_is_ended_in_a_change_is_replaced(postgres, database, store, locked):
    """The change is made by the next one, because the server has not made it."""
    epoch = store.create("s", SETTINGS, {KEY: b"0"})
    thread = threading.Thread(target=lambda: store.write("s", epoch, {KEY: b"1"}))
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
    with locked("records"):
        thread.start()
        wait_until(lambda: postgres.execute(waiting, database))
        ((pid,),) = postgres.execute(waiting, database)
        postgres.execute("SELECT pg_terminate_backend(%s)", pid)
    thread.join()
    assert store.value("s", *KEY) == b"1"


def test_a_lock_fails_all_waiting_changes(postgres, database, store, locked, monkeypatch):
    """They fail at once, not one after another with a wait each, and change nothing."""
    epochs = [store.create(f"s{number}", SETTINGS, {}) for number in range(8)]
    store.close()
    monkeypatch.setitem(connection.SETTINGS, "lock_timeout", "300")
    store = open_store(postgres.url(database))
    owned = [store.take(f"s{number}").epoch for number in range(8)]
    assert all(map(int.__lt__, epochs, owned))
    results = []

    def write(number):
        try:
            store.write(f"s{number}", owned[number], {KEY: b"v"})
        except errors.StoreFailed as error:
            results.append(str(error))

    with locked("records"):
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == ["the store failed: canceling statement due to lock timeout"] * 8
    assert store.value("s0", *KEY) is None
    store.write("s0", owned[0], {KEY: b"v"})
    store.close()


def test_a_lock_fails_all_waiting_reads(postgres, database, locked, monkeypatch):
    """They fail together, too, however many there are."""
    monkeypatch.setitem(connection.SETTINGS, "lock_timeout", "1000")
    said = "canceling statement due to lock timeout"
    store = open_store(postgres.url(database))
    before = postgres.log.count(said)
    results = []

    def read():
        try:
            store.is_owner("s", 1)
        except errors.StoreFailed as error:
            results.append(str(error))

    with locked("sessions", "ACCESS EXCLUSIVE"):
        threads = [threading.Thread(target=read) for _ in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [f"the store failed: {said}"] * 32
    assert postgres.log.count(said) - before < 8
    store.close()


def test_owners_are_looked_up_together(open_here, locked):
    """Each caller gets its own answer: also two that ask about one session, or about one that does not exist."""
    store, other = open_here(), open_here()
    epochs = {name: store.create(name, SETTINGS, {}) for name in "abcd"}
    other.take("b")
    other.drop("c", None)
    asked = [*epochs.items(), ("a", epochs["a"]), ("a", epochs["d"]), ("d", 2**62), ("e", epochs["a"]), ("", 0)]
    answers = [None] * len(asked)

    def ask(index):
        answers[index] = store.is_owner(*asked[index])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(asked))]
    with locked("sessions", "ACCESS EXCLUSIVE"):
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True, False, False, True, True, False, False, False, False]


def test_large_changes_side_by_side_do_not_share_a_transaction(store, locked, monkeypatch):
    """A statement has a largest size, which no caller knows to be near because of the others."""
    monkeypatch.setattr(postgres_store, "MOST_BYTES", 1000)
    epochs = [store.create(f"s{number}", SETTINGS, {}) for number in range(4)]
    before = store.commits.transactions
    threads = [
        threading.Thread(target=store.write, args=(f"s{number}", epoch, {KEY: bytes(600)}))
        for number, epoch in enumerate(epochs)
    ]
    with locked("records"):
        start_side_by_side(store, threads)
    for thread in threads:
        thread.join()
    assert store.commits.transactions - before == 4
    assert [store.value(f"s{number}", *KEY) for number in range(4)] == [bytes(600)] * 4


def test_a_change_that_the_server_refuses_does_not_affect_others(postgres, database, store):
    """The changes of a transaction that fails are tried one by one."""
    postgres.execute("ALTER TABLE dspex_bridge.records ADD CHECK (length(value) < 100)", database=database)
    epochs = {name: store.create(name, SETTINGS, {}) for name in "abc"}
    results = {}

    def write(name, size):
        try:
            store.write(name, epochs[name], {KEY: bytes(size)})
            results[name] = "written"
        except errors.StoreFailed:
            results[name] = "refused"

    with psycopg.connect(postgres.url(database)) as other:
        other.execute("LOCK TABLE dspex_bridge.records IN EXCLUSIVE MODE")
        threads = [threading.Thread(target=write, args=each) for each in (("a", 1), ("b", 1000), ("c", 1))]
        start_side_by_side(store, threads)
        other.rollback()
    for thread in threads:
        thread.join()
    assert results == {"a": "written", "b": "refused", "c": "written"}


def test_changes_side_by_side_share_transactions(store, locked):
    """64 sessions written at once take two transactions: one of the first, and one of all that came meanwhile."""
    epochs = [store.create(f"s{number}", SETTINGS, {}) for number in range(64)]
    before = store.commits.transactions
    threads = [
        threading.Thread(target=store.write, args=(f"s{number}", epoch, {KEY: str(number).encode()}))
        for number, epoch in enumerate(epochs)
    ]
    with locked("records"):
        start_side_by_side(store, threads)
    for thread in threads:
        thread.join()
    assert store.commits.transactions - before == 2
    assert [store.value(f"s{number}", *KEY) for number in range(64)] == [str(number).encode() for number in range(64)]


def test_no_clock_matters(open_here):
    """Sessions may be from the past or the future of the machine that takes them."""
    first, second = open_here(), open_here()
    for number, created_at in enumerate(("1970-01-01T00:00:00.000Z", "2999-12-31T23:59:59.999Z", "never")):
        settings = SessionSettings(created_at, 5.0, Quota())
        epoch = first.create(f"s{number}", settings, {KEY: b"0"})
        taken = second.take(f"s{number}")
        assert (taken.settings, taken.epoch > epoch) == (settings, True)
        with pytest.raises(errors.SessionLost):
            first.write(f"s{number}", epoch, {KEY: b"late"})
        second.write(f"s{number}", taken.epoch, {KEY: b"1"})


@pytest.mark.parametrize(
    "text", ["ö€😀", "a\0b", "x" * 512, "'; DROP TABLE sessions; --", "\\x00", "%s %(id)s {}", " "]
)
def test_ids_and_names_are_any_text(open_here, text):
    """Also names that are longer than an entry of an index, and values that look like SQL."""
    first, second = open_here(), open_here()
    name = text * 100
    value = name.encode() * 10
    epoch = first.create(text, SETTINGS, {("data", name): value, ("data", name + "2"): b""})
    first.write(text, epoch, {("data", name + "2"): None, ("data", name): value + b"\0"})
    assert second.find(text, "data").counted_records == 1
    assert list(second.names(text, "data")) == [name]
    assert second.value(text, "data", name) == value + b"\0"
    assert second.take(text).records == {("data", name): value + b"\0"}
    assert [each.session_id for each in second.list_sessions(9, None)[0]] == [text]


def test_many_records_in_one_change(open_here):
    """They come back in their order, also those that were changed later; some are removed in the same change."""
    first, second = open_here(), open_here()
    names = [f"k{number * 7919 % 5000}" for number in range(5000)]
    epoch = first.create("s", SETTINGS, {("data", name): name.encode() for name in names})
    changes = {("data", name): None if number % 3 == 0 else b"new" for number, name in enumerate(names)}
    changes[("data", "last")] = b"last"
    first.write("s", epoch, changes)
    records = second.take("s").records
    assert list(records) == [key for key, value in changes.items() if value is not None]
    assert set(records.values()) == {b"new", b"last"}


def test_a_closed_store_refuses_everything(store):
    epoch = store.create("s", SETTINGS, {})
    store.close()
    store.close()
    for refused in (
        lambda: store.write("s", epoch, {KEY: b"1"}),
        lambda: store.take("s"),
        lambda: store.value("s", *KEY),
        lambda: store.list_sessions(1, None),
    ):
        with pytest.raises(errors.StoreFailed, match="closed"):
            refused()


def test_rows_of_workers_that_ended_do_not_accumulate(postgres, database, open_here, monkeypatch):
    """A live one whose row was removed gets another, and loads its sessions again."""
    monkeypatch.setattr(writer, "KEPT", 2)
    store = open_here()
    epoch = store.create("s", SETTINGS, {})
    for _ in range(5):
        open_here()
    assert postgres.execute("SELECT count(*) FROM dspex_bridge.writers", database=database)[0][0] <= 3
    with pytest.raises(errors.SessionLost):
        store.write("s", epoch, {KEY: b"1"})
    store.write("s", store.take("s").epoch, {KEY: b"1"})
