"""Writes of a store: shared transactions, failures, full disks."""

from __future__ import annotations

import sys
import threading

import pytest

from bridge import Client, Quota, errors
from bridge.records import SessionSettings
from bridge.worker.stores.sqlite import SQLiteStore
from peer import wait_until
from store_workers import QA, WAIT, ask, call


def test_calls_side_by_side_share_transactions(open_worker, lock):
    """64 sessions written at once take far fewer than 64 transactions."""
    worker = open_worker()
    for number in range(64):
        ask(worker, "create_session", f"s{number}", durable=True)
    commits = worker.sessions.store.commits
    before = commits.transactions
    replies = []
    threads = [
        threading.Thread(
            target=lambda n=n: replies.append(call(worker, "update_session_data", f"s{n}", key="k", value=n)["success"])
        )
        for n in range(64)
    ]
    with lock():
        threads[0].start()
        wait_until(lambda: commits.is_busy and not commits.waiting)
        for thread in threads[1:]:
            thread.start()
        wait_until(lambda: commits.waiting == 63)
    for thread in threads:
        thread.join(WAIT)
    assert replies == [True] * 64
    assert commits.transactions - before == 2


def test_a_failed_write_changes_nothing(open_worker, full):
    """The reply is store_failed, memory is as it was, and the next write works."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "update_session_data", key="k", value="small")
    ask(worker, "create_program", id="qa", signature=QA)
    with full():
        reply = call(worker, "update_session_data", key="k", value="x" * 100_000)
        assert (reply["code"], reply["category"]) == ("store_failed", "resource")
        assert "full" in reply["error"]
        assert ask(worker, "get_session_data")["data"] == {"k": "small"}
        big = {"inputs": [{"name": "q"}], "outputs": [{"name": "a", "description": "x" * 100_000}]}
        assert call(worker, "create_program", id="big", signature=big)["code"] == "store_failed"
        assert [entry["id"] for entry in ask(worker, "list_programs")["programs"]] == ["qa"]
    ask(worker, "update_session_data", key="k", value="x" * 100_000)
    assert len(ask(open_worker(), "get_session_data")["data"]["k"]) == 100_000


def test_a_failing_write_does_not_affect_others(path, lock, full):
    """The changes of a transaction that fails are tried one by one."""
    store, results = SQLiteStore(path), {}
    store.create("s", SessionSettings("now", 1.0, Quota()), {})

    def write(name, size):
        try:
            store.write("s", 1, {("data", name): bytes(size)})
            results[name] = "written"
        except errors.StoreFailed:
            results[name] = "refused"

    sizes = {"first": 1, "a": 1, "b": 10**6, "c": 1}
    first, *others = [threading.Thread(target=write, args=each) for each in sizes.items()]
    with full():
        with lock():
            first.start()
            wait_until(lambda: store.commits.is_busy and not store.commits.waiting)
            for thread in others:
                thread.start()
            wait_until(lambda: store.commits.waiting == 3)
        for thread in (first, *others):
            thread.join(WAIT)
    assert results == {"first": "written", "a": "written", "b": "refused", "c": "written"}
    assert {name for _, name in store.take("s").records} == {"first", "a", "c"}
    store.close()
    with pytest.raises(errors.StoreFailed):
        store.take("s")


def test_a_worker_on_a_full_disk(path):
    """A real worker whose files cannot grow reports the error, and acknowledged data remains."""
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
    store = SQLiteStore(path)
    assert {name for _, name in store.take("default").records} == set(written)
    store.close()
