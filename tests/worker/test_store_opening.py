"""Opening a store: foreign files, versions, migrations, damage, permissions."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from bridge import Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores.sqlite import SQLiteStore, schema
from store_workers import WAIT, ask, call


@pytest.fixture
def as_nobody():
    """Run as another user, because root may write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def start_failure(*flags):
    """Return exit status and stderr of a worker that gets no frame."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", "echo", *flags],
        input=b"",
        capture_output=True,
        timeout=WAIT,
    )
    return done.returncode, done.stderr.decode()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"this is no database" * 500, "not a database"),
        (b"SQLite format 3\0" + bytes(4080), "not a database"),
    ],
)
def test_a_file_that_is_not_a_store_stops_the_start(path, content, words):
    """The exit status is 2 with one line, and the file is unchanged."""
    path.write_bytes(content)
    status, said = start_failure("--store", f"sqlite:{path}")
    assert status == 2
    assert words in said
    assert "Traceback" not in said
    assert path.read_bytes() == content


def test_another_applications_database_is_not_changed(path):
    """Also one that looks empty but has a version."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(errors.StoreFailed, match="another application"):
        SQLiteStore(path)


def test_a_store_of_a_later_version_is_not_changed(path):
    """The error has the version."""
    SQLiteStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    status, said = start_failure("--store", f"sqlite:{path}")
    assert status == 2
    assert "version 99" in said


def test_an_older_store_is_migrated_and_keeps_everything(path, monkeypatch):
    """The migration is one transaction: if it fails, the file is unchanged."""
    store = SQLiteStore(path)
    store.create("s", SessionSettings("now", 5.0, Quota()), {("data", "k"): b"v"})
    store.close()
    first = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "CREATE TABLE new (x); nonsense"))
    with pytest.raises(errors.StoreFailed, match="syntax error"):
        SQLiteStore(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "ALTER TABLE sessions ADD COLUMN note TEXT;"))
    store = SQLiteStore(path)
    assert store.take("s").records == {("data", "k"): b"v"}
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (len(first) + 1,)
        assert db.execute("SELECT note FROM sessions").fetchall() == [(None,)]
    store.close()
    monkeypatch.setattr(schema, "MIGRATIONS", first)
    with pytest.raises(errors.StoreFailed, match="newer than"):
        SQLiteStore(path)


def test_a_lost_or_emptied_file_is_an_error(path):
    """Its journal still exists."""
    store = SQLiteStore(path)
    store.create("s", SessionSettings("now", 5.0, Quota()), {})
    content = path.read_bytes(), path.with_name("store.db-wal").read_bytes()
    store.close()
    for damage in (path.unlink, lambda: path.write_bytes(b"")):
        path.write_bytes(content[0])
        path.with_name("store.db-wal").write_bytes(content[1])
        damage()
        with pytest.raises(errors.StoreFailed, match="journal"):
            SQLiteStore(path)
        assert path.with_name("store.db-wal").read_bytes() == content[1]


def test_a_damaged_record_is_an_error(open_worker, path):
    """SQLite has no checksums; ours detect a changed byte. Other sessions continue."""
    first = open_worker()
    for name in ("s", "t"):
        ask(first, "create_session", name, durable=True)
        ask(first, "update_session_data", name, key="k", value=f"the value of {name}")
    first.sessions.store.close()
    content = path.read_bytes()
    assert content.count(b"the value of s") == 1
    path.write_bytes(content.replace(b"the value of s", b"the volue of s"))
    worker = open_worker()
    for command in ("get_session_data", "update_session_data"):
        reply = call(worker, command, key="k", value=1)
        assert (reply["code"], "damaged" in reply["error"]) == ("store_failed", True)
    assert ask(worker, "get_session_data", "t")["data"] == {"k": "the value of t"}


def test_a_store_that_may_not_be_written_stops_the_start(request):
    """A read-only file, a read-only folder, a missing folder, a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        SQLiteStore(folder / "store.db").close()
        (folder / "store.db").chmod(0o444)
        folder.chmod(0o555)
        request.getfixturevalue("as_nobody")
        for path in ("store.db", "new.db", "no/such/folder.db", "."):
            with pytest.raises(errors.StoreFailed, match=r"Permission denied|No such file|Is a directory"):
                SQLiteStore(folder / path)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        folder.chmod(0o755)


@pytest.mark.parametrize("place", ["store.db", "sqlite:", "sqlite::memory:", "redis://x"])
def test_an_unknown_kind_of_store_is_a_usage_error(place):
    """Nothing is started."""
    status, said = start_failure("--store", place)
    assert status == 2
    assert "sqlite:PATH" in said


def test_many_workers_make_one_store_at_once(path):
    """The file does not exist before."""
    found = []

    def start(name):
        try:
            store = SQLiteStore(path)
            store.create(name, SessionSettings("", 1.0, Quota()), {})
            store.close()
            found.append("made")
        except errors.StoreFailed as error:
            found.append(str(error))

    threads = [threading.Thread(target=start, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["made"] * 8
