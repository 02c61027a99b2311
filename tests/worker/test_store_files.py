"""A store's files: removed, replaced or full while a worker runs, and damaged."""

from __future__ import annotations

import resource
import shutil
import sqlite3
import subprocess
import sys
import zlib

import pytest

from bridge import Client, Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores.sqlite import SQLiteStore, schema

SETTINGS = SessionSettings("2026-01-01T00:00:00.000Z", 5.0, Quota(3, 999))


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "folder with %20 and ? and #"
    folder.mkdir()
    return folder / "store.db"


@pytest.fixture
def client(path):
    with Client.start(adapter="echo", flags=["--store", f"sqlite:{path}"]) as client:
        yield client


def put(client, value, session_id="s"):
    client.call("update_session_data", {"key": "k", "value": value}, session_id=session_id)


def stored(path):
    """Return what a new worker finds in the session `s`."""
    with Client.start(adapter="echo", flags=["--store", f"sqlite:{path}"]) as client:
        return client.call("get_session_data", session_id="s")["data"]


def replace_by_a_copy(path):
    shutil.copy(path, path.with_name("copy.db"))
    path.with_name("copy.db").rename(path)


LOST = {
    "deleted": lambda path: path.unlink(),
    "moved": lambda path: path.rename(path.with_name("elsewhere.db")),
    "replaced": replace_by_a_copy,
    "emptied": lambda path: path.write_bytes(b""),
    "folder deleted": lambda path: shutil.rmtree(path.parent),
    "folder moved": lambda path: path.parent.rename(path.parent.with_name("elsewhere")),
    "journal deleted": lambda path: path.with_name("store.db-wal").unlink(),
    "index deleted": lambda path: path.with_name("store.db-shm").unlink(),
}


@pytest.mark.parametrize("loss", LOST)
def test_a_change_is_not_acknowledged_once_a_file_is_gone(client, path, loss):
    """It is `store_failed` and taken back, whether it makes, changes, opens or ends a session, and
    so is a listing; nothing creates the file again; sessions in memory go on."""
    client.call("create_session", {"durable": True}, session_id="s")
    put(client, "before")
    put(client, 1, "memory")
    LOST[loss](path)
    left = path.exists() and path.stat().st_size
    for command, args in (
        ("update_session_data", {"key": "k", "value": "after"}),
        ("create_session", {"ttl_s": 7}),
        ("create_session", {"session_id": "memory", "durable": True}),
        ("get_session_data", {"session_id": "not known"}),
        ("cleanup_session", {"session_id": "gone"}),
        ("list_sessions", {}),
        ("get_session", {}),
    ):
        with pytest.raises(errors.StoreFailed, match="while the worker had it open"):
            client.call(command, args, session_id=args.get("session_id", "s"))
    assert (path.exists() and path.stat().st_size) == left
    put(client, 2, "memory")
    assert client.call("get_session_data", session_id="memory")["data"] == {"k": 2}


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_file_that_is_put_back_is_used_again(client, path, what):
    """It does not contain the changes that were refused meanwhile."""
    moved = path if what == "file" else path.parent
    elsewhere = moved.with_name("elsewhere")
    client.call("create_session", {"durable": True}, session_id="s")
    put(client, "before")
    moved.rename(elsewhere)
    with pytest.raises(errors.StoreFailed):
        put(client, "meanwhile")
    elsewhere.rename(moved)
    assert client.call("get_session_data", session_id="s")["data"] == {"k": "before"}
    put(client, "after")
    client.kill()
    assert stored(path) == {"k": "after"}


def test_a_link_to_the_file_may_not_lead_elsewhere(path):
    """SQLite follows it only once."""
    real = path.with_name("real.db")
    SQLiteStore(real).close()
    path.symlink_to(real)
    store = SQLiteStore(path)
    store.create("s", SETTINGS, {})
    path.unlink()
    shutil.copy(real, path.with_name("other.db"))
    path.symlink_to(path.with_name("other.db"))
    with pytest.raises(errors.StoreFailed, match=r"store\.db was"):
        store.write("s", 1, {("data", "k"): b"v"})
    store.close()


def test_a_full_disk_fails_the_change_and_not_the_worker(client, path):
    """Once there is space, the next change is stored."""
    client.call("create_session", {"durable": True}, session_id="s")
    put(client, "before")
    pid = client.call("get_stats")["worker"]["pid"]
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    with pytest.raises(errors.StoreFailed):
        put(client, "x" * 10_000_000)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    assert client.call("get_session_data", session_id="s")["data"] == {"k": "before"}
    put(client, "after")
    client.kill()
    assert stored(path) == {"k": "after"}


def damage(path, *statements):
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA foreign_keys = OFF")
    for statement in statements:
        db.execute(statement)
    db.close()


SWAPS = {
    "two keys": (
        "UPDATE records SET name = 'x' WHERE name = 'a' AND session = 1",
        "UPDATE records SET name = 'a' WHERE name = 'b' AND session = 1",
        "UPDATE records SET name = 'b' WHERE name = 'x' AND session = 1",
    ),
    "a kind": ("UPDATE records SET kind = 'program' WHERE name = 'a' AND session = 1",),
    "two sessions": (
        "UPDATE records SET session = 3 WHERE session = 1",
        "UPDATE records SET session = 1 WHERE session = 2",
        "UPDATE records SET session = 2 WHERE session = 3",
    ),
    "two ids": (
        "UPDATE sessions SET id = 'x' WHERE id = 's'",
        "UPDATE sessions SET id = 's' WHERE id = 't'",
        "UPDATE sessions SET id = 't' WHERE id = 'x'",
    ),
    "an epoch": ("UPDATE sessions SET epoch = epoch + 10",),
    "a quota": ("UPDATE sessions SET bytes = NULL",),
    "a time to live": ("UPDATE sessions SET ttl_s = 6",),
    "none: a record is missing": ("DELETE FROM records WHERE name = 'b'",),
    "none: all are missing": ("DELETE FROM records",),
    "a type": ("UPDATE records SET value = 5",),
    "none: the counter is missing": ("DELETE FROM epochs",),
}


@pytest.mark.parametrize("swap", SWAPS)
def test_a_record_under_another_name_is_damage(path, swap):
    """The bytes of each value are correct."""
    store = SQLiteStore(path)
    for name in ("s", "t"):
        records = {("data", "a"): f"a of {name}".encode(), ("data", "b"): f"b of {name}".encode()}
        store.create(name, SETTINGS, records)
    store.close()
    damage(path, *SWAPS[swap])
    store = SQLiteStore(path)
    with pytest.raises(errors.StoreFailed, match="damaged"):
        store.take("s")
    store.close()


def test_a_store_of_the_first_version_is_read(path):
    """Its checksums cover values only; records that were damaged are still detected."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(schema.MIGRATIONS[0])
    db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    db.execute("PRAGMA user_version = 1")
    db.execute("UPDATE epochs SET last = 7")
    for number, name in ((1, "s"), (2, "t")):
        db.execute("INSERT INTO sessions VALUES (?, ?, ?, 'then', 5.0, 3, NULL)", (number, name, number))
        for key in ("a", "b"):
            value = f"{key} of {name}".encode()
            crc32 = zlib.crc32(value) + (name == "t")
            row = (number, "data", key, value, crc32)
            db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?)", row)
    db.close()
    store = SQLiteStore(path)
    opened = store.take("s")
    assert opened.records == {("data", "a"): b"a of s", ("data", "b"): b"b of s"}
    store.write("s", opened.epoch, {("data", "b"): None, ("data", "c"): b"new"})
    opened.records.update({("data", "b"): None, ("data", "c"): b"new"})
    del opened.records["data", "b"]
    assert (opened.epoch, opened.settings) == (8, SessionSettings("then", 5.0, Quota(3, None)))
    with pytest.raises(errors.StoreFailed, match="damaged"):
        store.take("t")
    store.close()
    store = SQLiteStore(path)
    assert store.take("s").records == opened.records
    store.close()


def test_rewritten_and_removed_records_are_not_damage(path):
    """Any number of times, in any order, with equal values too."""
    store = SQLiteStore(path)
    epoch = store.create("s", SETTINGS, {})
    expected = {}
    for number in range(60):
        key = ("data", f"k{number * 7 % 5}")
        value = None if number % 3 == 0 else b"v" * (number % 4)
        store.write("s", epoch, {key: value, ("tools", ""): b"same"})
        expected[key] = value
        epoch = store.take("s").epoch
    expected = {key: value for key, value in expected.items() if value is not None}
    assert store.take("s").records == {**expected, ("tools", ""): b"same"}
    store.close()


def test_an_error_of_sqlite_that_is_not_utf_8_ends_the_start_in_one_line(path):
    """The message contains text of the file."""
    SQLiteStore(path).close()
    content = path.read_bytes()
    for right, wrong in (
        (b"tableepochsepochs", b"table\xff\xfeochsepochs"),
        (b"CREATE TABLE epochs (last", b"CREATE TABLE epochs )last"),
    ):
        assert content.count(right) == 1
        content = content.replace(right, wrong)
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bridge", "worker", "--store", f"sqlite:{path}"],
        input=b"",
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert b"store" in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stderr.count(b"\n") == 1
