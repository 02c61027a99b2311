"""Updates of session data: merges, wrong updates, and reads after writes."""

from __future__ import annotations

import datetime
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import Atom
from bridge.wire.codec import ETF, JSON, MSGPACK, by_name
from session_values import FORMATS, NOT_UTF8, Workers, same


def update(workers, format=JSON, **args):
    return workers.call(format, "update_session_data", args)


def data(workers):
    return workers.ask(JSON, "get_session_data", {})["data"]


def test_merge_with_a_key_merges_into_its_map(workers):
    """Without a value, the key gets the new map."""
    first = update(workers, operation="merge", key="prefs", value={"a": 1, "b": {"x": 1}})
    assert (first["result"]["operation"], first["result"]["key"]) == ("merge", "prefs")
    update(workers, operation="merge", key="prefs", value={"b": {"y": 2}, "c": None})
    assert data(workers) == {"prefs": {"a": 1, "b": {"y": 2}, "c": None}}
    update(workers, operation="merge", key="prefs", value={})
    update(workers, operation="merge", value={"other": 1})
    assert data(workers) == {"prefs": {"a": 1, "b": {"y": 2}, "c": None}, "other": 1}


@pytest.mark.parametrize("first", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("second", FORMATS, ids=lambda format: format.name)
def test_maps_of_two_formats_are_merged(workers, first, second):
    """Every format can read the result."""
    update(workers, first, operation="merge", key="k", value={"a": 1, "b": [1.5]})
    update(workers, second, operation="merge", key="k", value={"a": "x", "c": True})
    for format in FORMATS:
        assert workers.read(format) == {"a": "x", "b": [1.5], "c": True}


def test_a_merge_changes_no_value_that_the_other_format_cannot_carry(workers):
    """The result is stored in the format that carries both; if there is none, nothing changes."""
    update(workers, ETF, key="k", value={"raw": NOT_UTF8, 1: "one"})
    assert update(workers, JSON, operation="merge", key="k", value={"t": "x"})["success"]
    assert workers.read(ETF) == {"raw": NOT_UTF8, 1: "one", "t": "x"}
    update(workers, MSGPACK, key="k", value={"inf": math.inf})
    reply = update(workers, JSON, operation="merge", key="k", value={"big": 2**70})
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.value")
    assert workers.read(MSGPACK) == {"inf": math.inf}


@pytest.mark.parametrize(
    ("args", "path", "words"),
    [
        ({"operation": "merge", "key": "n", "value": {"a": 1}}, "args.key", "set replaces it"),
        ({"operation": "merge", "key": "m", "value": [1]}, "args.value", "needs a map"),
        ({"operation": "merge", "key": "m"}, "args.value", "needs a map"),
        ({"operation": "merge", "value": 1}, "args.value", "needs a map"),
        ({"operation": "merge"}, "args.value", "needs a map"),
        ({"operation": "set", "value": 1}, "args.key", "is required"),
        ({"operation": "delete"}, "args.key", "is required"),
        ({"operation": "explode", "key": "a"}, "args.operation", "set, put, update, delete"),
        ({"operation": "x" * 100_000}, "args.operation", "unknown operation"),
    ],
)
def test_wrong_updates_are_refused(workers, args, path, words):
    """The error explains the mistake, and nothing changes."""
    update(workers, key="n", value=1)
    update(workers, key="m", value={"a": 0})
    reply = update(workers, **args)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert words in reply["error"]
    assert len(reply["error"]) < 500
    assert data(workers) == {"n": 1, "m": {"a": 0}}


def test_keys_that_are_not_text_are_refused(workers):
    """A merge without a key needs strings; atoms count as strings."""
    for wrong in ({1: 2}, {NOT_UTF8: 1}):
        reply = update(workers, ETF, operation="merge", value=wrong)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.value")
        assert "keys are strings" in reply["error"]
    assert update(workers, ETF, operation="merge", value={Atom("a"): 1})["success"]
    assert data(workers) == {"a": 1}


@pytest.mark.parametrize("operation", ["set", "put", "update"])
def test_the_operation_set(workers, operation):
    """Without a value, the key gets null."""
    assert update(workers, operation=operation, key="k", value=1)["result"]["operation"] == operation
    assert update(workers, operation=operation, key="l")["success"]
    assert data(workers) == {"k": 1, "l": None}
    for delete in ("delete", "remove"):
        assert update(workers, operation=delete, key=f"{delete} k"[-1], value="ignored")["success"]
    assert data(workers) == {"l": None}


common = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=12,
)


# And what only some of them carry.
special = (
    st.integers()
    | st.floats()
    | st.binary()
    | st.datetimes(timezones=st.just(datetime.UTC), min_value=datetime.datetime(1970, 1, 1))
)


anything = st.recursive(
    common | special,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"])) | st.binary() | st.integers(),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150)
@given(anything, st.sampled_from(["json", "msgpack", "etf"]))
def test_what_is_read_is_what_was_written_or_an_error(tmp_path_factory, value, name):
    """It is never another value; `neutral` defines how formats represent values."""
    format = by_name(name)
    if not carries(format, value):
        return
    workers = Workers(tmp_path_factory.mktemp("data") / "store.db")
    try:
        assert workers.write(format, value)["success"]
        workers.restart()
        for other in FORMATS:
            read = workers.read(other)
            meant = neutral(value, format)
            if carries(other, meant):
                assert same(read, neutral(meant, other)), other.name
            else:
                assert read["code"] == "not_encodable"
    finally:
        workers.close()


def carries(format, value):
    """Return whether the format can represent that value."""
    kind = type(value)
    if kind is dict:
        keys_fit = format is not JSON or all(type(key) is str for key in value)
        keys_fit = keys_fit and len({neutral(key, format) for key in value}) == len(value)
        return keys_fit and all(carries(format, each) for each in (*value, *value.values()))
    if kind is list:
        return all(carries(format, each) for each in value)
    if kind is int:
        return format is not MSGPACK or -(2**63) <= value < 2**64
    if kind is float:
        return format is MSGPACK or math.isfinite(value)
    if kind is bytes:
        return format is not JSON
    return kind is not datetime.datetime or format is MSGPACK


def neutral(value, format):
    """Return the value that a format represents: in ETF, text and bytes are equal."""
    if isinstance(value, dict):
        return {neutral(key, format): neutral(entry, format) for key, entry in value.items()}
    if isinstance(value, list):
        return [neutral(entry, format) for entry in value]
    if format is ETF and isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value
