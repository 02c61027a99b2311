"""When a worker finds out that another one has taken a durable session: at the latest before the reply."""

from __future__ import annotations

import threading

import pytest

import memory_store
from bridge import Adapter, Dispatcher, errors
from peer import wait_until
from store_workers import WAIT, ask, call

adapter = Adapter("owners")


@adapter.command("stubborn", lane="session")
def stubborn(args, context):
    """Return what the session has, whatever the store says."""
    before = sorted(context.session.records.of("data"))
    try:
        context.release()
        context.take_turn()
    except errors.BridgeError:
        pass
    return {"keys": before}


@adapter.command("read_inherited", lane="session")
def read_inherited(args, context):
    """Read from the store."""
    return {"keys": sorted(context.session.inherited)}


@adapter.command("work", lane="run")
def work(args, context):
    """Work beside other calls, then change the session."""
    context.release()
    adapter.working.set()
    adapter.worked.wait(WAIT)
    context.take_turn()
    context.session.records.put("work", "done", b"")
    return {}


class CountingStore:
    """A store that counts how often it is asked. fails: whether it does."""

    def __init__(self):
        self.sessions = memory_store.MemoryStore()
        self.asked = 0
        self.fails = False

    def __getattr__(self, method):
        self.asked += 1
        if self.fails:
            raise errors.StoreFailed("no answer")
        return getattr(self.sessions, method)


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def workers(store):
    """Return two workers that share the store, the first of which owns the durable session `s`."""
    adapter.working, adapter.worked = threading.Event(), threading.Event()
    both = [Dispatcher(adapter, store=store) for _ in range(2)]
    ask(both[0], "create_session", durable=True)
    yield both
    store.fails = False
    for worker in both:
        worker.close()


def test_a_handler_cannot_hide_that_the_session_was_taken(workers, store):
    """What it saw before is not answered, even if it goes on after the error of release()."""
    first, second = workers
    store.sessions._watchers.clear()  # no hint: the first worker has to ask
    ask(second, "update_session_data", key="k", value=1)
    assert call(first, "stubborn")["code"] == "session_lost"
    assert ask(first, "stubborn")["keys"] == ["k"]


def test_a_call_whose_session_was_taken_while_it_worked_gets_session_lost(workers):
    """Not that the session has ended, also if an earlier call of this worker has noticed it before."""
    first, second = workers
    replies = []
    thread = threading.Thread(target=lambda: replies.append(call(first, "work")))
    thread.start()
    assert adapter.working.wait(WAIT)
    ask(second, "update_session_data", key="k", value=1)
    wait_until(lambda: first.sessions.find("s") is None)
    assert ask(first, "get_session_data")["data"] == {"k": 1}
    adapter.worked.set()
    thread.join(WAIT)
    assert replies[0]["code"] == "session_lost"


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("create_session", {"ttl_s": 7}),  # writes the settings
        ("create_session", {}),
        ("update_session_data", {"key": "k", "value": 1}),
        ("update_session_data", {"key": "none", "operation": "delete"}),  # changes nothing
        ("update_session_data", {"operation": "nonsense"}),  # an error
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_a_change_asks_the_store_once(workers, store, command, args, fails):
    """A failure of the store may take half a minute, after which it is not asked again."""
    store.asked, store.fails = 0, fails
    reply = call(workers[0], command, **args)
    assert not fails or reply["code"] == "store_failed"
    assert store.asked == 1


def test_a_store_that_fails_inside_a_handler_is_not_asked_again(workers, store):
    """The call has its error already."""
    first = workers[0]
    ask(first, "create_session", first.sessions.default_id, durable=True)
    store.asked, store.fails = 0, True
    assert call(first, "read_inherited")["code"] == "store_failed"
    assert store.asked == 1


def test_a_session_that_could_not_be_loaded_is_listed_as_it_is_stored(workers, store):
    """Not as an empty session in memory."""
    second = workers[1]
    store.fails = True
    assert call(second, "get_session_data")["code"] == "store_failed"
    store.fails = False
    listed = ask(second, "list_sessions")
    assert [(one["session_id"], one["durable"], one["live"]) for one in listed["sessions"]] == [("s", True, False)]
    assert listed["total_count"] == 1
