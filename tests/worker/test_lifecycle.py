"""A dispatcher from its construction to its close: no pipe, no process of its own."""

from __future__ import annotations

import json
import threading

import pytest

from bridge import Adapter, Dispatcher, errors
from bridge.adapter import AdapterFailed
from bridge.adapters.echo import adapter as echo
from bridge.options import Options
from bridge.worker.stores.sqlite import SQLiteStore
from peer import wait_until


def call(dispatcher, command, **more):
    return json.loads(dispatcher.call(json.dumps({"id": 1, "command": command, **more}).encode(), 30))


@pytest.fixture
def new_threads():
    """Return the names of the threads that the test has started and that have not ended."""
    before = set(threading.enumerate())
    return lambda: sorted(thread.name for thread in set(threading.enumerate()) - before)


def test_a_dispatcher_has_the_commands_of_its_adapter_and_of_every_worker():
    dispatcher = Dispatcher(echo)
    commands = call(dispatcher, "describe")["result"]["commands"]
    assert {"echo", "ping", "describe", "get_stats", "create_session", "update_session_data"} <= commands.keys()
    assert call(dispatcher, "ping")["result"]["status"] == "ok"
    assert call(dispatcher, "get_stats")["result"]["command_count"] == 2


def test_an_adapter_cannot_replace_a_command_of_every_worker():
    own = Adapter("own")

    @own.command("ping")
    def ping(args, context):
        return {}

    with pytest.raises(AdapterFailed, match="'ping'"):
        Dispatcher(own)


def test_start_loads_what_commands_need_and_close_ends_all_threads(new_threads):
    """These are the threads of calls, of deadlines, and the one that loads libraries."""
    loaded = threading.Event()
    adapter = Adapter("heavy", warm_up=loaded.set)

    @adapter.command("work")
    def work(args, context):
        return {}

    with Dispatcher(adapter, Options(grace=1.0)) as dispatcher:
        assert loaded.wait(30)
        assert call(dispatcher, "work", timeout_ms=30_000)["success"]
        assert "bridge-clock" in new_threads()
    assert new_threads() == []


def test_close_ends_open_calls_and_returns_how_many_threads_did_not_end(new_threads):
    adapter, gate = Adapter("slow"), threading.Event()

    @adapter.command("block")
    def block(args, context):
        gate.wait(30)
        return {}

    dispatcher, replies = Dispatcher(adapter, Options(grace=0.0)), []
    caller = threading.Thread(target=lambda: replies.append(call(dispatcher, "block")))
    caller.start()
    wait_until(lambda: any(open_call.running for open_call in list(dispatcher.worker.calls.open.values())))
    assert dispatcher.close() == 1
    caller.join(30)
    assert replies[0]["code"] == errors.Cancelled.code
    gate.set()
    wait_until(lambda: not new_threads())


def test_close_closes_the_store(tmp_path):
    """Another worker can open it."""
    options = Options(store=f"sqlite:{tmp_path}/sessions.db")
    with Dispatcher(echo, options) as dispatcher:
        args = {"session_id": "s", "durable": True}
        assert call(dispatcher, "create_session", args=args)["success"]
    assert call(dispatcher, "list_sessions")["code"] == errors.StoreFailed.code
    store = SQLiteStore(tmp_path / "sessions.db")
    assert store.find("s", None) is not None
    store.close()
