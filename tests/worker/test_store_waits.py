"""One session waits for the disk, because another process locks the file; other sessions do not."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading

import pytest

from bridge import Dispatcher
from bridge._framing import Frame, Outbox
from bridge.adapters.dspy import adapter
from bridge.worker.stores.sqlite import SQLiteStore
from peer import wait_until

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
WAIT = 60.0
ids = itertools.count(1)

HOLD = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
db.execute("ROLLBACK")
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "store.db"


@pytest.fixture
def worker(path):
    store = SQLiteStore(path)
    dispatcher = Dispatcher(adapter, store=store)
    yield dispatcher
    store.close()


@pytest.fixture
def hold(path):
    """Return a function that lets another process lock the store's file: release = hold()."""
    holders = []

    def hold():
        holder = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holders.append(holder)
        assert holder.stdout.readline() == b"held\n"

        def release():
            holder.communicate(timeout=WAIT)

        return release

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


class Sent:
    """A request that was sent; its reply arrives later."""

    def __init__(self, dispatcher, command, session_id=None, **args):
        self._done = threading.Event()
        request = {"id": next(ids), "command": command, "args": args, "session_id": session_id}
        outbox = Outbox()
        with dispatcher.arrival:
            dispatcher.path.answer(Frame.of(json.dumps(request).encode()), outbox, self._deliver)
        if len(outbox):
            self._deliver(outbox)

    def _deliver(self, outbox):
        self._reply = json.loads(outbox.payload())
        self._done.set()

    @property
    def is_answered(self):
        return self._done.is_set()

    def result(self):
        assert self._done.wait(WAIT)
        assert self._reply["success"], self._reply
        return self._reply["result"]


def model(answer):
    return {"provider": "scripted", "answers": {"question": {"answer": answer}}}


@pytest.fixture
def stuck(worker, hold):
    """Return a call that waits for the disk in the durable session `stuck`, until stuck.release()."""
    Sent(worker, "configure_lm", **model("old")).result()
    for name in ("stuck", "free"):
        Sent(worker, "create_session", name, durable=name == "stuck").result()
        Sent(worker, "create_program", name, id="p", signature=QA).result()
    release = hold()
    call = Sent(worker, "update_session_data", "stuck", key="k", value=1)
    wait_until(lambda: worker.sessions.store.commits.is_busy)
    call.release = release
    yield call
    assert call.result()["status"] == "updated"


RUN = {"program_id": "p", "inputs": {"question": "?"}}


def test_a_model_for_all_waits_for_no_session(worker, stuck):
    """Calls that came before it in the session that waits use the model of before, all others
    the new one, and none of them waits."""
    before = Sent(worker, "execute_program", "stuck", **RUN)
    assert Sent(worker, "configure_lm", **model("new")).result()["status"] == "configured"
    after = Sent(worker, "execute_program", "stuck", **RUN)
    assert Sent(worker, "execute_program", "free", **RUN).result()["outputs"] == {"answer": "new"}
    for name in (None, "made meanwhile"):
        Sent(worker, "create_program", name, id="p", signature=QA).result()
        done = Sent(worker, "execute_program", name, **RUN).result()
        assert done["outputs"] == {"answer": "new"}
    assert not any(sent.is_answered for sent in (stuck, before, after))
    stuck.release()
    assert before.result()["outputs"] == {"answer": "old"}
    assert after.result()["outputs"] == {"answer": "new"}


@pytest.mark.parametrize("command", ["cleanup", "reset_state"])
def test_ending_all_sessions_holds_none_up(worker, stuck, command):
    """Its own reply waits for the calls before it; calls behind it do not, but for those of the
    session that waits."""
    ended = Sent(worker, command)
    assert Sent(worker, "get_session_data", "free").result()["data"] == {}
    Sent(worker, "create_program", "free", id="p", signature=QA).result()
    Sent(worker, "configure_lm", **model("new")).result()
    assert Sent(worker, "execute_program", "free", **RUN).result()["outputs"] == {"answer": "new"}
    behind = Sent(worker, "get_session_data", "stuck")
    assert not any(sent.is_answered for sent in (stuck, ended, behind))
    stuck.release()
    assert ended.result()["programs_removed" if command == "cleanup" else "programs_cleared"] == 2
    assert behind.result()["data"] == {"k": 1}


def test_ending_the_waiting_session_does_not_delay_others(worker, stuck):
    """cleanup_session waits; other calls do not."""
    ended = Sent(worker, "cleanup_session", "stuck")
    Sent(worker, "update_session_data", "free", key="k", value=1).result()
    assert not ended.is_answered
    stuck.release()
    assert ended.result()["programs_removed"] == 1


def test_describing_sessions_does_not_wait(worker, stuck):
    """Listings, statistics, and one session, including the one that waits."""
    for _ in range(3):
        listed = Sent(worker, "list_sessions").result()["sessions"]
        assert {"stuck", "free"} <= {entry["session_id"] for entry in listed}
        assert Sent(worker, "get_session", session_id="stuck").result()["durable"]
        sections = ["sessions", "commands", "worker"]
        assert Sent(worker, "get_stats", include=sections).result()["sessions"]
        assert Sent(worker, "get_stats").result()["programs_count"] == 2
    assert not stuck.is_answered
    stuck.release()


def test_sessions_are_expired_and_evicted_while_one_waits(worker, stuck, monkeypatch):
    """The waiting session is neither expired nor evicted."""
    Sent(worker, "create_session", "short", ttl_s=0.01).result()
    wait_until(lambda: worker.sessions.find("short") is None)
    assert Sent(worker, "get_session_data", "short").result()["data"] == {}
    monkeypatch.setattr(worker.sessions, "limit", 2)
    for name in ("a", "b", "c"):
        Sent(worker, "get_session_data", name).result()
    assert worker.sessions.find("stuck") is not None
    assert not stuck.is_answered
    stuck.release()


def test_changes_for_all_take_effect_in_the_order_of_arrival(worker):
    """Many of them are sent without waiting, with calls of other sessions in between."""
    for name in ("a", "b"):
        Sent(worker, "create_program", name, id="p", signature=QA).result()
    runs = []
    for number in range(30):
        Sent(worker, "configure_lm", **model(str(number)))
        runs.append((str(number), Sent(worker, "execute_program", "ab"[number % 2], **RUN)))
    assert all(sent.result()["outputs"] == {"answer": answer} for answer, sent in runs)


def test_a_change_for_all_that_fails_changes_nothing(worker):
    """The earlier model remains."""
    Sent(worker, "create_program", "a", id="p", signature=QA).result()
    Sent(worker, "configure_lm", **model("old")).result()
    with pytest.raises(AssertionError, match="invalid_args"):
        Sent(worker, "configure_lm", provider="gemini").result()
    assert Sent(worker, "execute_program", "a", **RUN).result()["outputs"] == {"answer": "old"}
