"""Durable sessions: on disk before the reply, back in another worker, lost to a new owner."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from bridge import Client, Dispatcher, errors
from bridge.adapters.dspy import adapter as dspy_adapter
from bridge.records import Quota, Settings
from bridge.worker.control import control
from bridge.worker.stores import schema
from bridge.worker.stores.sqlite import Store

WAIT = 60.0
ids = itertools.count(1)
QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def open_worker(path):
    """Makes dispatchers on stores of one file, as other processes would have them."""
    stores = []

    def open_worker(adapter=dspy_adapter, **options):
        stores.append(Store(path))
        dispatcher = Dispatcher(adapter, store=stores[-1], **options)
        dispatcher.add(control(dispatcher))
        return dispatcher

    yield open_worker
    for store in stores:
        store.close()


def call(dispatcher, command, /, session_id="s", **args):
    request = {"id": next(ids), "command": command, "args": args, "session_id": session_id}
    return json.loads(dispatcher.call(json.dumps(request).encode(), WAIT))


def ask(dispatcher, command, /, session_id="s", **args):
    reply = call(dispatcher, command, session_id, **args)
    assert reply["success"], reply
    return reply["result"]


def test_all_of_a_session_comes_back(open_worker):
    """Programs, model, tools, data, settings; in another worker, which was asked for nothing."""
    first = open_worker()
    made = ask(first, "create_session", durable=True, ttl_s=50, quota={"programs": 5})
    assert made["durable"]
    ask(first, "configure_lm", provider="scripted", answers=[{"answer": "Graz"}])
    ask(first, "register_tools", tools=[{"name": "look", "args": {"at": {"type": "string"}}}])
    ask(first, "create_program", id="qa", signature=QA)
    ask(first, "create_program", id="re", signature=QA, program_type="react", max_iters=3)
    ask(first, "create_program", id="gone", signature=QA)
    ask(first, "delete_program", program_id="gone")
    ask(first, "update_session_data", key="k", value={"n": [1, 2**80]})

    second = open_worker()
    listed = ask(second, "list_programs")
    assert [entry["id"] for entry in listed["programs"]] == ["qa", "re"]
    assert listed["programs"][0]["signature"] == QA
    assert [entry["program_type"] for entry in listed["programs"]] == ["predict", "react"]
    assert ask(second, "get_session_data")["data"] == {"k": {"n": [1, 2**80]}}
    session = ask(second, "get_session", session_id="s")
    assert (session["ttl_s"], session["quota"]["programs"]) == (50, 5)
    assert session["created_at"] == made["created_at"]
    assert ask(second, "create_session")["status"] == "exists"
    done = ask(second, "execute_program", program_id="qa", inputs={"question": "Where?"})
    assert done["outputs"] == {"answer": "Graz"}
    tools = second.sessions.open("s").state.programs["re"].definition.tools
    assert [tool.name for tool in tools] == ["look"]


def test_what_came_before_a_session_was_durable_is_kept_too(open_worker):
    """And everything after, deletions included."""
    first = open_worker()
    ask(first, "update_session_data", key="before", value=1)
    ask(first, "create_session", durable=True)
    ask(first, "update_session_data", operation="merge", value={"after": 2, "gone": 3})
    ask(first, "update_session_data", operation="delete", key="gone")
    assert ask(open_worker(), "get_session_data")["data"] == {"before": 1, "after": 2}


def test_sessions_are_not_durable_unless_asked_for(open_worker):
    """A store alone writes nothing."""
    ask(open_worker(), "update_session_data", key="k", value=1)
    other = open_worker()
    assert ask(other, "get_session_data")["data"] == {}
    assert call(other, "get_session", session_id="t")["code"] == "session_not_found"


def test_keys_are_not_stored(open_worker, path):
    """Nor passwords in addresses; a session that came back without says so."""
    first = open_worker()
    ask(first, "create_session", durable=True)
    ask(
        first,
        "configure_lm",
        model="openai/gpt-4o-mini",
        api_key="sk-very-secret",
        api_base="http://user:hidden-password@127.0.0.1:9/v1?key=hidden-too",
    )
    ask(first, "create_program", id="qa", signature=QA)
    first.sessions.store.close()
    for file in path.parent.iterdir():
        for secret in (b"sk-very-secret", b"hidden-password", b"hidden-too"):
            assert secret not in file.read_bytes(), file
    second = open_worker()
    reply = call(second, "execute_program", program_id="qa", inputs={"question": "?"})
    assert reply["code"] == "lm_not_configured"
    assert "openai/gpt-4o-mini" in reply["error"]
    ask(second, "configure_lm", provider="scripted", answers=[{"answer": "yes"}])
    done = ask(second, "execute_program", program_id="qa", inputs={"question": "?"})
    assert done["outputs"]["answer"] == "yes"


def test_a_session_that_gave_way_keeps_its_key_no_longer_but_its_programs(open_worker):
    """Evicted from memory, it is still in the store; not counted as lost."""
    worker = open_worker(max_sessions=1)
    ask(worker, "create_session", durable=True)
    ask(worker, "create_program", id="qa", signature=QA)
    ask(worker, "get_session_data", "other")
    listed = ask(worker, "list_sessions")
    assert {entry["session_id"]: entry["live"] for entry in listed["sessions"]} == {
        "other": True,
        "s": False,
    }
    stored = ask(worker, "get_session", session_id="s")
    assert (stored["live"], stored["durable"], stored["programs"]) == (False, True, 1)
    assert ask(worker, "list_programs")["total_count"] == 1


def test_the_last_to_open_a_session_owns_it(open_worker):
    """A stale owner gets session_lost, writes nothing, and may open it again."""
    first, second = open_worker(), open_worker()
    ask(first, "create_session", durable=True)
    ask(first, "update_session_data", key="k", value="first")
    ask(second, "update_session_data", key="k", value="second")
    reply = call(first, "update_session_data", key="k", value="stale")
    assert (reply["code"], reply["category"], reply["recovery"]) == (
        "session_lost",
        "session",
        "immediate_retry",
    )
    assert ask(second, "get_session_data")["data"] == {"k": "second"}
    ask(first, "update_session_data", key="l", value="mine again")
    assert ask(first, "get_session_data")["data"] == {"k": "second", "l": "mine again"}
    assert call(second, "create_session", ttl_s=5)["code"] == "session_lost"
    assert ask(second, "create_session")["status"] == "exists"


def test_a_session_ended_and_made_again_is_another(open_worker):
    """The owner of the old one does not write into the new one."""
    first, second = open_worker(), open_worker()
    ask(first, "create_session", durable=True)
    ask(first, "create_program", id="qa", signature=QA)
    assert ask(second, "cleanup_session")["programs_removed"] == 1
    assert call(second, "get_session", session_id="s")["code"] == "session_not_found"
    ask(second, "create_session", durable=True)
    assert call(first, "update_session_data", key="k", value=1)["code"] == "session_lost"
    assert ask(second, "get_session_data")["data"] == {}
    assert ask(second, "list_programs")["total_count"] == 0


def test_cleanup_leaves_the_store_alone(open_worker):
    """So do reset_state and the end of the worker; cleanup_session does not."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "create_program", id="qa", signature=QA)
    for command in ("cleanup", "reset_state"):
        ask(worker, command)
        assert ask(worker, "list_programs")["total_count"] == 1
    ask(worker, "cleanup_session")
    assert ask(worker, "list_programs")["total_count"] == 0


def test_a_durable_session_stays_durable(open_worker):
    """durable: false is refused, a second true changes nothing."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    reply = call(worker, "create_session", durable=False)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.durable")
    assert ask(worker, "create_session", durable=True)["durable"]


def test_calls_side_by_side_share_transactions(open_worker):
    """64 sessions written at once take far fewer than 64 transactions."""
    worker = open_worker()
    for number in range(64):
        ask(worker, "create_session", f"s{number}", durable=True)
    store = worker.sessions.store
    gate = threading.Event()
    blocked = threading.Thread(target=store._do, args=(lambda db: gate.wait(WAIT),))
    before = store.transactions
    blocked.start()
    while not store._is_busy:
        pass
    replies = []
    threads = [
        threading.Thread(
            target=lambda n=n: replies.append(call(worker, "update_session_data", f"s{n}", key="k", value=n)["success"])
        )
        for n in range(64)
    ]
    for thread in threads:
        thread.start()
    while len(store._waiting) < 64:
        pass
    gate.set()
    for thread in (blocked, *threads):
        thread.join()
    assert replies == [True] * 64
    assert store.transactions - before == 2


def test_a_failed_write_changes_nothing(open_worker, path):
    """The reply is store_failed, memory is as it was, and the next write works."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "update_session_data", key="k", value="small")
    ask(worker, "create_program", id="qa", signature=QA)
    db = worker.sessions.store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    reply = call(worker, "update_session_data", key="k", value="x" * 100_000)
    assert (reply["code"], reply["category"]) == ("store_failed", "resource")
    assert "full" in reply["error"]
    assert ask(worker, "get_session_data")["data"] == {"k": "small"}
    reply = call(worker, "create_session", "t", durable=True, quota={"bytes": 10**6})
    big = {"inputs": [{"name": "q"}], "outputs": [{"name": "a", "description": "x" * 100_000}]}
    assert call(worker, "create_program", id="big", signature=big)["code"] == "store_failed"
    assert [entry["id"] for entry in ask(worker, "list_programs")["programs"]] == ["qa"]
    db.execute("PRAGMA max_page_count = 1000000")
    ask(worker, "update_session_data", key="k", value="x" * 100_000)
    assert len(ask(open_worker(), "get_session_data")["data"]["k"]) == 100_000


def test_one_write_too_many_costs_the_others_nothing(path):
    """A transaction that fails is taken apart."""
    store = Store(path)
    store.create("s", Settings("now", 1.0, Quota()), {})
    db = store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0] + 1}")
    gate, results = threading.Event(), {}
    threading.Thread(target=store._do, args=(lambda db: gate.wait(WAIT),)).start()
    while not store._is_busy:
        pass

    def write(name, size):
        try:
            store.write("s", 1, {("data", name): bytes(size)})
            results[name] = "written"
        except errors.StoreFailed:
            results[name] = "refused"

    threads = [threading.Thread(target=write, args=each) for each in (("a", 1), ("b", 10**6), ("c", 1))]
    for thread in threads:
        thread.start()
    while len(store._waiting) < 3:
        pass
    gate.set()
    for thread in threads:
        thread.join()
    assert results == {"a": "written", "b": "refused", "c": "written"}
    assert set(store.open("s").records) == {("data", "a"), ("data", "c")}
    store.close()
    with pytest.raises(errors.StoreFailed):
        store.open("s")


def test_a_disk_that_takes_no_more(path):
    """A real worker whose files may not grow: the error is told, acknowledged data stays."""
    limit = 300_000

    def fill(name):
        return client.call("update_session_data", {"key": name, "value": "x" * 50_000})

    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from bridge.cli import main; sys.exit(main())"
    )
    launcher = path.with_name("python")
    launcher.write_text(f'#!/bin/sh\nshift 3; exec {sys.executable} -P -c "$CODE" "$@"\n')
    launcher.chmod(0o755)
    with Client.start(
        adapter="echo",
        python=str(launcher),
        flags=["--store", f"sqlite:{path}"],
        env={"CODE": code},
    ) as client:
        client.call("create_session", {"session_id": "default", "durable": True})
        written = []
        refused = None
        while refused is None and len(written) < 20:
            try:
                fill(f"k{len(written)}")
                written.append(f"k{len(written)}")
            except errors.StoreFailed as error:
                refused = error
        assert refused is not None
        assert refused.recovery == "backoff_retry"
        assert sorted(client.call("get_session_data")["data"]) == sorted(written)
    assert written
    store = Store(path)
    assert {name for _, name in store.open("default").records} == set(written)
    store.close()


def start_failure(*flags):
    """Exit status and stderr of a worker that is given no frame."""
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
def test_a_file_that_is_no_store_stops_the_start(path, content, words):
    """Exit status 2, one line, the file as it was."""
    path.write_bytes(content)
    status, said = start_failure("--store", f"sqlite:{path}")
    assert status == 2
    assert words in said
    assert "Traceback" not in said
    assert path.read_bytes() == content


def test_a_database_of_something_else_is_left_alone(path):
    """Also one that looks empty but has a version."""
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(errors.StoreFailed, match="something else"):
        Store(path)


def test_a_store_of_a_later_version_is_left_alone(path):
    """It says which version it is of."""
    Store(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    status, said = start_failure("--store", f"sqlite:{path}")
    assert status == 2
    assert "version 99" in said


def test_an_older_store_is_migrated_and_keeps_everything(path, monkeypatch):
    """In one transaction: a migration that fails leaves the file as it was."""
    store = Store(path)
    store.create("s", Settings("now", 5.0, Quota()), {("data", "k"): b"v"})
    store.close()
    first = schema.MIGRATIONS
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "CREATE TABLE new (x); nonsense"))
    with pytest.raises(errors.StoreFailed, match="syntax error"):
        Store(path)
    monkeypatch.setattr(schema, "MIGRATIONS", (*first, "ALTER TABLE sessions ADD COLUMN note TEXT;"))
    store = Store(path)
    assert store.open("s").records == {("data", "k"): b"v"}
    assert store._db.execute("PRAGMA user_version").fetchone() == (len(first) + 1,)
    assert store._db.execute("SELECT note FROM sessions").fetchall() == [(None,)]
    store.close()
    monkeypatch.setattr(schema, "MIGRATIONS", first)
    with pytest.raises(errors.StoreFailed, match="later one"):
        Store(path)


def test_a_lost_or_emptied_file_is_no_new_store(path):
    """Where its journal still stands beside it."""
    store = Store(path)
    store.create("s", Settings("now", 5.0, Quota()), {})
    content = path.read_bytes(), path.with_name("store.db-wal").read_bytes()
    store.close()
    for damage in (path.unlink, lambda: path.write_bytes(b"")):
        path.write_bytes(content[0])
        path.with_name("store.db-wal").write_bytes(content[1])
        damage()
        with pytest.raises(errors.StoreFailed, match="journal"):
            Store(path)
        assert path.with_name("store.db-wal").read_bytes() == content[1]


def test_a_damaged_record_is_told_and_not_served(open_worker, path):
    """SQLite has no checksums; ours find a changed byte. Other sessions work on."""
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


@pytest.fixture
def as_nobody():
    """Root may write everywhere."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def test_a_store_that_may_not_be_written_stops_the_start(request):
    """Read-only file, read-only folder, no such folder, a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Store(folder / "store.db").close()
        (folder / "store.db").chmod(0o444)
        folder.chmod(0o555)
        request.getfixturevalue("as_nobody")
        for path in ("store.db", "new.db", "no/such/folder.db", "."):
            with pytest.raises(errors.StoreFailed, match=r"Permission denied|No such file|Is a directory"):
                Store(folder / path)
        if os.geteuid() != os.getuid():
            os.seteuid(os.getuid())
        folder.chmod(0o755)


@pytest.mark.parametrize("place", ["store.db", "sqlite:", "sqlite::memory:", "postgres://x"])
def test_a_wrong_place_is_a_usage_error(place):
    """Before anything is started."""
    status, said = start_failure("--store", place)
    assert status == 2
    assert "sqlite:PATH" in said


def test_many_workers_make_one_store_at_once(path):
    """The file does not exist yet."""
    found = []

    def start(name):
        try:
            store = Store(path)
            store.create(name, Settings("", 1.0, Quota()), {})
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


def test_a_session_survives_the_kill_of_its_worker(path):
    """The reply is the promise."""
    flags = ["--store", f"sqlite:{path}"]
    client = Client.start(adapter="echo", flags=flags)
    client.call("create_session", {"durable": True}, session_id="s")
    client.call("update_session_data", {"key": "k", "value": 7}, session_id="s")
    client.kill()
    with Client.start(adapter="echo", flags=flags) as again:
        assert again.call("get_session_data", session_id="s")["data"] == {"k": 7}
    assert not path.with_name("store.db-wal").exists()  # a clean end leaves one file


@pytest.fixture
def lock(path):
    """Holds the file as another program might: `with lock():`."""

    @contextlib.contextmanager
    def locked():
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")
            other.close()

    return locked


def in_background(dispatcher, command, session_id="s", timeout_ms=None, **args):
    """Start a call; a function that waits for its reply."""
    request = {"id": next(ids), "command": command, "args": args}
    if session_id is not None:
        request["session_id"] = session_id
    if timeout_ms is not None:
        request["timeout_ms"] = timeout_ms
    replies = []
    thread = threading.Thread(
        target=lambda: replies.append(json.loads(dispatcher.call(json.dumps(request).encode(), WAIT)))
    )
    thread.start()

    def reply():
        thread.join(WAIT)
        return replies[0]

    reply.id = request["id"]
    return reply


@pytest.mark.parametrize("command", ["create_session", "update_session_data"])
def test_a_call_that_ends_inside_a_write_keeps_its_turn(open_worker, lock, command):
    """What comes behind it is written behind it: nothing acknowledged is lost, nothing is half."""
    worker = open_worker()
    ask(worker, "update_session_data", key="first", value=1)
    if command != "create_session":
        ask(worker, "create_session", durable=True)
    args = {"durable": True} if command == "create_session" else {"key": "late", "value": 1}
    with lock():
        late = in_background(worker, command, timeout_ms=50, **args)
        assert late()["code"] == "deadline_exceeded"
        behind = in_background(worker, "update_session_data", key="behind", value=1)
    assert behind()["success"]
    stored = ask(open_worker(), "get_session_data")["data"]
    assert {"first", "behind"} <= set(stored)


def test_a_late_change_of_the_model_is_not_stored_by_another_call(open_worker, lock):
    """Its lane is that of changes for everyone."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    with lock():
        late = in_background(worker, "configure_lm", timeout_ms=100, provider="scripted", answers=[])
        assert late()["code"] == "deadline_exceeded"
        behind = in_background(worker, "update_session_data", key="k", value=1)
    assert behind()["success"]
    kept = worker.sessions.open("s").records
    assert not kept.changes()
    assert worker.sessions.store.open("s").records == kept.all()


def test_a_model_that_was_not_stored_is_not_used(open_worker):
    """The one before is, with its key."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "create_program", id="qa", signature=QA)
    old = {"question text": {"answer": "old"}}
    ask(worker, "configure_lm", provider="scripted", answers=old, api_key="sk-old-key")
    db = worker.sessions.store._db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    reply = call(worker, "configure_lm", provider="scripted", answers={"x" * 100_000: {}})
    assert reply["code"] == "store_failed"
    done = ask(worker, "execute_program", program_id="qa", inputs={"question": "question text"})
    assert done["outputs"] == {"answer": "old"}


def test_sessions_that_are_not_durable_do_not_wait_for_the_store(open_worker, lock):
    """Not for a file that others hold, nor for durable sessions that do."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "update_session_data", "known", key="k", value=1)
    with lock():
        stuck = in_background(worker, "update_session_data", key="k", value=1)
        everyone = in_background(worker, "configure_lm", None, provider="scripted", answers=[])
        assert everyone()["success"]
        for name in ("known", "new"):
            assert in_background(worker, "get_session_data", name, timeout_ms=20_000)()["success"]
    assert stuck()["success"]


def test_a_file_that_others_hold_fails_all_that_wait_at_once(path, lock, monkeypatch):
    """Not each in turn, with a wait of its own."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT", 0.2)
    store, tries = Store(path), []
    monkeypatch.setattr(store, "_transaction", counting(store._transaction, tries))
    for number in range(8):
        store.create(f"s{number}", Settings("", 1.0, Quota()), {})
    tries.clear()
    results = []

    def write(number):
        try:
            store.write(f"s{number}", number + 1, {("data", "k"): b"v"})
        except errors.StoreFailed as error:
            results.append(str(error))

    with lock():
        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == ["the store failed: database is locked"] * 8
    assert len(tries) < 8
    store.close()


def counting(function, calls):
    def counted(*args):
        calls.append(args)
        return function(*args)

    return counted


def test_a_session_that_another_made_durable_meanwhile_is_opened_next(open_worker):
    """The retry that `session_lost` asks for finds it."""
    first, second = open_worker(), open_worker()
    ask(first, "update_session_data", key="k", value="first")
    ask(second, "update_session_data", key="k", value="second")
    ask(second, "create_session", durable=True)
    assert call(first, "create_session", durable=True)["code"] == "session_lost"
    assert ask(first, "create_session", durable=True)["status"] == "exists"
    assert ask(first, "get_session_data")["data"] == {"k": "second"}


def test_listings_do_not_show_what_another_has_taken_over(open_worker):
    """Each session once, as it is in the store."""
    first, second = open_worker(), open_worker()
    ask(first, "create_session", durable=True)
    ask(first, "create_session", "mine", durable=True)
    ask(second, "update_session_data", key="k", value="x" * 50)
    for worker, live in ((first, False), (second, True)):
        listed = ask(worker, "list_sessions")
        (row,) = [each for each in listed["sessions"] if each["session_id"] == "s"]
        assert (row["live"], row["bytes"] > 50, listed["total_count"]) == (live, True, 2)
        assert ask(worker, "get_session")["live"] is live
    ask(second, "cleanup_session")
    assert call(first, "get_session")["code"] == "session_not_found"
    listed = ask(first, "list_sessions")
    assert [each["session_id"] for each in listed["sessions"]] == ["mine"]
    assert listed["total_count"] == 1


def test_settings_and_place_are_changed_together(open_worker, lock, monkeypatch):
    """A create_session that fails changes nothing."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT", 0.1)
    worker = open_worker()
    ask(worker, "update_session_data", key="k", value=1)
    with lock():
        assert call(worker, "create_session", durable=True, ttl_s=5)["code"] == "store_failed"
    session = ask(worker, "get_session")
    assert (session["ttl_s"], session["durable"]) == (3600, False)
    assert ask(worker, "create_session", durable=True, ttl_s=5)["ttl_s"] == 5
    with lock():
        assert call(worker, "create_session", ttl_s=6)["code"] == "store_failed"
    assert ask(worker, "get_session")["ttl_s"] == 5


@pytest.mark.parametrize(
    "base",
    [
        "user:pw-secret@host/v1",
        "http:user:pw-secret@host",
        "https:///user:pw-secret@host",
        "http://[::1/v1",
        "ftp://host",
        "",
    ],
)
def test_an_api_base_is_an_address(open_worker, base):
    """What cannot be read cannot be kept from showing."""
    reply = call(open_worker(), "configure_lm", model="openai/x", api_base=base)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.api_base")
    assert "pw-secret" not in json.dumps(reply)


def test_only_its_owner_may_read_the_file(open_worker, path):
    """The journal neither."""
    ask(open_worker(), "create_session", durable=True)
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
