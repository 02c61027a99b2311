"""A standby takes over from a PostgreSQL server that was lost, by the commands of docs/operations.md."""

from __future__ import annotations

import threading

import pytest

import kill_writers
from bridge import Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores import open_store
from peer import wait_until

failover = pytest.importorskip("failover")
postgres_server = pytest.importorskip("postgres_server")
psycopg = pytest.importorskip("psycopg")

SETTINGS = SessionSettings("2026-01-01T00:00:00.000Z", 5.0, Quota())
KEY = ("data", "key")


@pytest.fixture(scope="module")
def pair():
    """Return two servers that the tests of this file share."""
    if not postgres_server.is_installed():
        pytest.skip(postgres_server.MISSING)
    with failover.ServerPair() as pair:
        yield pair


@pytest.fixture
def servers(pair):
    """Return the two servers, whichever is the primary now. The standby follows it."""
    if not pair.standby.is_running:
        pair.rejoin()
    pair.wait_until_equal()
    return pair


def test_workers_write_while_servers_are_lost_and_come_back(servers):
    """No acknowledged change is lost, and the workers stay. Each server takes over from the other."""
    database = servers.primary.create_database()

    def lose_both_in_turn() -> None:
        servers.fail_over()
        servers.rejoin()
        servers.fail_over()

    both = kill_writers.Disturbance("two fail-overs", 0.5, lose_both_in_turn)
    count = kill_writers.run(servers.url(database), 1.0, writers=16, rate=0.0, disturbances=[both])
    assert count.is_clean, count
    assert count.disturbances == {"two fail-overs": 1}
    assert count.acknowledged >= 50


def test_an_old_primary_acknowledges_nothing(servers):
    """It was started as it was, and waits for a standby that no longer follows it."""
    servers.fail_over()
    old = servers.standby
    old.start()
    failures = []

    def write() -> None:
        try:
            old.execute("CREATE TABLE written (number int)")
        except psycopg.Error as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: old.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"))
    old.kill()
    writer.join()
    assert failures
    servers.rejoin()
    servers.wait_until_equal()
    assert servers.standby.execute("SELECT 1 FROM pg_class WHERE relname = 'written'") == []


def test_a_change_that_waits_for_its_standby_is_not_acknowledged(servers, monkeypatch):
    """Its outcome is unknown as long as the standby is away. The next change is made when it is back."""
    monkeypatch.setattr("bridge.worker.stores.postgres.connection.REPLY_TIMEOUT", 0.3)
    monkeypatch.setattr("bridge.worker.stores.postgres.writer.PATIENCE", 0.5)
    store = open_store(servers.url(servers.primary.create_database()))
    epoch = store.create("s", SETTINGS, {KEY: b"0"})
    servers.standby.kill()
    with pytest.raises(errors.OutcomeUnknown):
        store.write("s", epoch, {KEY: b"1"})
    servers.standby.start()
    monkeypatch.undo()
    store.write("s", epoch, {KEY: b"2"})
    assert store.value("s", *KEY) == b"2"
    store.close()


def test_what_a_standby_did_not_have_is_lost_and_its_owners_know_that(servers):
    """Without synchronous replication. An owner whose last changes or whose epoch were lost owns nothing more."""
    servers.primary.configure(synchronous_standby_names="")
    url = servers.url(servers.primary.create_database())
    with_losses, without, late = (open_store(url) for _ in range(3))
    lost = with_losses.create("lost", SETTINGS, {KEY: b"kept"})
    kept = without.create("kept", SETTINGS, {KEY: b"kept"})
    servers.wait_until_equal()
    servers.standby.stop()
    with_losses.write("lost", lost, {KEY: b"lost"})
    taken = late.take("kept")
    late.write("kept", taken.epoch, {KEY: b"lost"})
    servers.primary.kill()
    servers.standby.start()
    servers.fail_over()
    assert [without.value(name, *KEY) for name in ("lost", "kept")] == [b"kept", b"kept"]
    for store, name, epoch in ((with_losses, "lost", lost), (late, "kept", taken.epoch)):
        with pytest.raises(errors.SessionLost):
            store.write(name, epoch, {KEY: b"late"})
    without.write("kept", kept, {KEY: b"new"})
    assert with_losses.take("lost").records == {KEY: b"kept"}
    assert late.take("kept").records == {KEY: b"new"}
    for store in (with_losses, without, late):
        store.close()
