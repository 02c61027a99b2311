"""Laws of records: nothing is lost between workers, and undo reverts all changes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bridge import Dispatcher, Quota, Records, errors
from bridge.adapters.echo import adapter
from bridge.worker.stores.sqlite import SQLiteStore

names = st.text(max_size=4)
values = st.binary(max_size=20)
steps = st.one_of(
    st.tuples(st.just("put"), st.sampled_from(["data", "program"]), names, values),
    st.tuples(st.just("remove"), st.sampled_from(["data", "program"]), names, st.none()),
    st.tuples(st.sampled_from(["stored", "undo"]), st.none(), st.none(), st.none()),
)


REMOVED_AND_BACK = [
    ("put", "data", "a", b"1"),
    ("put", "data", "b", b"2"),
    ("stored", None, None, None),
    ("remove", "data", "a", None),
    ("undo", None, None, None),
]


@example(REMOVED_AND_BACK, Quota())
@given(st.lists(steps, max_size=30), st.builds(Quota, *[st.none() | st.integers(0, 60)] * 2))
def test_records_are_a_map_with_undo(todo, quota):
    """They behave like a dict, also in their order; size and changes equal those counted from scratch."""
    records, model, last = Records(quota, "program"), {}, {}
    records.mark_stored()
    for what, kind, name, value in todo:
        before = dict(model)
        if what == "put":
            try:
                records.put(kind, name, value)
                model[kind, name] = value
            except errors.QuotaExceeded:
                grown = {**model, (kind, name): value}
                programs = [key for key in grown if key[0] == "program"]
                assert (quota.records is not None and len(programs) > quota.records) or (
                    quota.bytes is not None and size_of(grown) > quota.bytes
                )
        elif what == "remove":
            records.remove(kind, name)
            model.pop((kind, name), None)
        elif what == "stored":
            records.mark_stored()
            last = dict(model)
        else:
            records.undo()
            model = dict(last)
        assert records.all() == model, (what, before)
        for each in ("data", "program"):
            assert list(records.of(each)) == [name for kind, name in model if kind == each], (what, before)
        assert records.size == size_of(model)
        changes = records.changes()
        assert apply(last, changes) == model


def size_of(model):
    return sum(len(name.encode()) + len(value) for (_, name), value in model.items())


def apply(model, changes):
    merged = {**model, **changes}
    return {key: value for key, value in merged.items() if value is not None}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # 1e400 and the like are text here, and decode as infinities elsewhere
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
session_ids = st.sampled_from(["a", "b", "../c", "\0"])
commands = st.one_of(
    st.tuples(st.just("create_session"), session_ids, st.fixed_dictionaries({})),
    st.tuples(
        st.just("update_session_data"),
        session_ids,
        st.fixed_dictionaries({"key": names, "value": json_values}),
    ),
    st.tuples(
        st.just("update_session_data"),
        session_ids,
        st.fixed_dictionaries(
            {
                "operation": st.just("merge"),
                "value": st.dictionaries(names, json_values, max_size=3),
            }
        ),
    ),
    st.tuples(
        st.just("update_session_data"),
        session_ids,
        st.fixed_dictionaries({"operation": st.just("delete"), "key": names}),
    ),
    st.tuples(st.just("cleanup_session"), session_ids, st.fixed_dictionaries({})),
    st.tuples(st.just("change workers"), st.none(), st.none()),
)


@settings(max_examples=60)
@given(st.lists(commands, max_size=25))
def test_each_worker_has_all_acknowledged_changes(todo):
    """Two workers on one file are used alternately and agree with a dict."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [SQLiteStore(Path(folder) / "store.db") for _ in range(2)]
        workers = [Dispatcher(adapter, store=store) for store in stores]
        model: dict[str, dict[str, object]] = {}
        turn = 0
        for command, session_id, args in todo:
            if command == "change workers":
                turn = 1 - turn
                continue
            if session_id not in model and command != "cleanup_session":
                # A session in memory would be this worker's alone.
                ask(workers[turn], "cleanup_session", session_id, {})
                ask(workers[turn], "create_session", session_id, {"durable": True})
                model[session_id] = {}
            ask(workers[turn], command, session_id, args)
            change(model, command, session_id, args)
        for worker in workers:
            for session_id, data in model.items():
                ask(
                    worker,
                    "update_session_data",
                    session_id,
                    {"operation": "delete", "key": "x" * 5},
                )
                assert ask(worker, "get_session_data", session_id, {})["data"] == data
                ask(worker, "cleanup", None, {})
        for store in stores:
            store.close()


def change(model, command, session_id, args):
    if command == "cleanup_session":
        model.pop(session_id, None)
    elif args.get("operation") == "merge":
        model[session_id].update(args["value"])
    elif args.get("operation") == "delete":
        model[session_id].pop(args["key"], None)
    elif "key" in args:
        model[session_id][args["key"]] = args["value"]


def ask(worker, command, session_id, args):
    """Ask again after session_lost, which an earlier owner gets once before it owns the session again."""
    request = {"id": 1, "command": command, "args": args}
    if session_id is not None:
        request["session_id"] = session_id
    for _ in range(2):
        reply = json.loads(worker.call(json.dumps(request).encode(), 30))
        if reply.get("code") != "session_lost":
            break
    else:
        pytest.fail("lost twice")
    assert reply["success"], reply
    return reply["result"]
