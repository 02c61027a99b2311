"""Several workers on one store: locks, waits, sessions taken over."""

from __future__ import annotations

import json
import threading

import pytest

from bridge import Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores.sqlite import SQLiteStore, schema
from store_workers import QA, WAIT, ask, call, ids


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
    """Later changes are written after it: no acknowledged change is lost, and none is partial."""
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
    """The command runs in the lane of changes for all sessions."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    with lock():
        late = in_background(worker, "configure_lm", timeout_ms=100, provider="scripted", answers=[])
        assert late()["code"] == "deadline_exceeded"
        behind = in_background(worker, "update_session_data", key="k", value=1)
    assert behind()["success"]
    kept = worker.sessions.open("s").records
    assert not kept.changes()
    assert worker.sessions.store.take("s").records == kept.all()


def test_a_model_that_was_not_stored_is_not_used(open_worker, full):
    """The earlier one is used, with its key."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "create_program", id="qa", signature=QA)
    old = {"question text": {"answer": "old"}}
    ask(worker, "configure_lm", provider="scripted", answers=old, api_key="sk-old-key")
    with full():
        reply = call(worker, "configure_lm", provider="scripted", answers={"x" * 100_000: {}})
    assert reply["code"] == "store_failed"
    done = ask(worker, "execute_program", program_id="qa", inputs={"question": "question text"})
    assert done["outputs"] == {"answer": "old"}


def test_sessions_that_are_not_durable_do_not_wait_for_the_store(open_worker, lock):
    """Neither for a locked file nor for durable sessions that wait."""
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


def test_a_locked_file_fails_all_waiting_calls(path, lock, monkeypatch):
    """They fail at once, not one after another with a wait each."""
    monkeypatch.setattr(schema, "BUSY_TIMEOUT", 0.2)
    store = SQLiteStore(path)
    for number in range(8):
        store.create(f"s{number}", SessionSettings("", 1.0, Quota()), {})
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
    store.close()


def test_a_session_that_another_made_durable_meanwhile_is_opened_next(open_worker):
    """The retry that `session_lost` recommends opens it."""
    first, second = open_worker(), open_worker()
    ask(first, "update_session_data", key="k", value="first")
    ask(second, "update_session_data", key="k", value="second")
    ask(second, "create_session", durable=True)
    assert call(first, "create_session", durable=True)["code"] == "session_lost"
    assert ask(first, "create_session", durable=True)["status"] == "exists"
    assert ask(first, "get_session_data")["data"] == {"k": "second"}


def test_listings_show_each_session_once(open_worker):
    """Sessions that another worker has taken over are shown as they are in the store."""
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


def test_settings_and_durability_are_changed_together(open_worker, lock, monkeypatch):
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
    """If it cannot be parsed, it cannot be redacted."""
    reply = call(open_worker(), "configure_lm", model="openai/x", api_base=base)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.api_base")
    assert "pw-secret" not in json.dumps(reply)


def test_only_its_owner_may_read_the_file(open_worker, path):
    """This includes the journal."""
    ask(open_worker(), "create_session", durable=True)
    for file in path.parent.iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
