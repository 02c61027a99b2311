"""Writes of a store: shared transactions, failures, full disks."""

from __future__ import annotations

import sys
import threading

import pytest

from bridge import Client, errors
from bridge.records import Quota, Settings
from bridge.worker.stores.sqlite import Store
from store_workers import QA, WAIT, ask, call


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
