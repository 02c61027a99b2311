"""Session data has the same meaning in each format, for writing and for reading."""

from __future__ import annotations

import datetime
import math

import msgspec
import pytest
from hypothesis import strategies as st

from bridge import Atom, Opaque, Quota
from bridge.records import SessionSettings
from bridge.wire.codec import ETF, JSON, MSGPACK
from bridge.worker.stores.sqlite import SQLiteStore
from session_values import FORMATS, NOT_UTF8, as_a_beam, ids, is_many, same


def every(value):
    return {format.name: value for format in FORMATS}


def beside(value, json=None, msgpack=None, etf=None):
    """Values as the other formats read them. None: equal; "error": the format cannot carry the value."""
    return {
        "json": value if json is None else json,
        "msgpack": value if msgpack is None else msgpack,
        "etf": value if etf is None else etf,
    }


# (name, what is written, in which formats, what is read in each)
VALUES = [
    ("nothing", None, FORMATS, every(None)),
    ("truth", [True, False], FORMATS, every([True, False])),
    ("text", "é\u2028\x00☃", FORMATS, every("é\u2028\x00☃")),
    ("text that is base64", "AAAA", FORMATS, every("AAAA")),
    ("integers", [0, -1, 2**63, -(2**63)], FORMATS, every([0, -1, 2**63, -(2**63)])),
    ("a large integer", 2**70, (JSON, ETF), beside(2**70, msgpack="error")),
    ("a huge integer", 10**5000, (ETF,), beside(10**5000, msgpack="error", json="error")),
    ("floats", [1.0, -0.5, 1e300], FORMATS, every([1.0, -0.5, 1e300])),
    ("nested", {"a": [{"b": []}, {}]}, FORMATS, every({"a": [{"b": []}, {}]})),
    ("bytes", NOT_UTF8, (MSGPACK, ETF), beside(NOT_UTF8, json="error")),
    ("bytes inside", {"a": [NOT_UTF8]}, (MSGPACK, ETF), beside({"a": [NOT_UTF8]}, json="error")),
    ("bytes of text", b"text", (MSGPACK,), beside(b"text", json="error", etf="text")),
    ("infinity", [math.inf], (MSGPACK,), beside([math.inf], json="error", etf="error")),
    ("a number key", {1: "a"}, (MSGPACK, ETF), beside({1: "a"}, json="error")),
    ("a bytes key", {NOT_UTF8: 1}, (MSGPACK, ETF), beside({NOT_UTF8: 1}, json="error")),
    ("null as a key", {None: 1}, (MSGPACK, ETF), beside({None: 1}, json="error")),
    (
        "a timestamp",
        datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
        (MSGPACK,),
        beside(datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC), json="error", etf="error"),
    ),
    ("an atom", Atom("hello"), (ETF,), every("hello")),
    (
        "atoms",
        {Atom("k"): [Atom("tensor"), {"x": Atom("f")}]},
        (ETF,),
        every({"k": ["tensor", {"x": "f"}]}),
    ),
    ("a tuple", (Atom("ok"), (1, "a")), (ETF,), beside(["ok", [1, "a"]], etf=("ok", (1, "a")))),
    (
        "a tuple like a tensor",
        ("tensor", ("f", 32), (1,), "four"),
        (ETF,),
        beside(["tensor", ["f", 32], [1], "four"], etf=("tensor", ("f", 32), (1,), "four")),
    ),
    (
        "a tuple that is no tensor",
        (Atom("tensor"), Atom("f"), 1, "x"),
        (ETF,),
        beside(["tensor", "f", 1, "x"], etf=("tensor", "f", 1, "x")),
    ),
    (
        "a tensor",
        (Atom("tensor"), (Atom("u"), 8), (2,), b"ab"),
        (ETF,),
        {
            "json": {"$tensor": {"type": "u8", "shape": [2], "data": "YWI="}},
            "msgpack": {"$tensor": {"type": "u8", "shape": [2], "data": b"ab"}},
            "etf": ("tensor", ("u", 8), (2,), b"ab"),
        },
    ),
    (
        "a form of JSON",
        {"$tensor": {"type": "u8", "shape": [2], "data": "YWI="}},
        (JSON,),
        {
            "json": {"$tensor": {"type": "u8", "shape": [2], "data": "YWI="}},
            "msgpack": {"$tensor": {"type": "u8", "shape": [2], "data": b"ab"}},
            "etf": ("tensor", ("u", 8), (2,), b"ab"),
        },
    ),
    ("what looks like a reference", {"$buffer": 0}, FORMATS, every({"$buffer": 0})),
    ("what looks like a bad tensor", {"$tensor": 1}, FORMATS, every({"$tensor": 1})),
]


NAMES = [name for name, *_ in VALUES]


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
@pytest.mark.parametrize(("name", "value", "written", "expected"), VALUES, ids=NAMES)
def test_a_value_is_the_same_in_every_format(workers, name, value, written, expected, nested):
    """Or it is an error with the key; also after a restart, and in another worker."""
    for format in written:
        given = {"in": [value]} if nested else value
        reply = workers.write(format, given)
        assert reply["success"], reply
        for change in (None, "restart", "steal"):
            if change is not None:
                getattr(workers, change)()
            for other in FORMATS:
                wanted = expected[other.name]
                read = workers.read(other)
                if isinstance(wanted, str) and wanted == "error":
                    assert (read["code"], read["success"]) == ("not_encodable", False)
                    assert read["error"].startswith("result.data.k")
                    assert read["details"]["path"].startswith("result.data.k")
                else:
                    wanted = {"in": [wanted]} if nested else wanted
                    assert same(plain(read), wanted), (format.name, other.name, change)


def plain(value):
    """Return a value for comparison: ETF's atoms of tensors as text, views as bytes."""
    if isinstance(value, Atom):
        return str(value)
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    return type(value)(map(plain, value)) if is_many(value) else value


PID = b"\x83Xw\rnonode@nohost\0\0\0p\0\0\0\0\0\0\0\0"[1:]


REFUSED = {
    "pid": Opaque(PID),
    "improper list": Opaque(b"l\0\0\0\x01a\x01a\x02"),
    "bit string": Opaque(b"M\0\0\0\x01\x03\xa0"),
    "keys that are equal": Opaque(b"t\0\0\0\x02a\x01a\x01F\x3f\xf0\0\0\0\0\0\0a\x02"),
    "atom and text": Opaque(b"t\0\0\0\x02w\x01aa\x01m\0\0\0\x01aa\x02"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_terms_that_only_their_node_understands_are_refused(workers, name):
    """The error has the path, and nothing is stored."""
    for value, path in (
        (REFUSED[name], "args.value"),
        ({"a": [1, (REFUSED[name],)]}, "args.value.a[1][0]"),
        ({REFUSED[name]: 1}, "args.value"),
    ):
        reply = workers.write(ETF, value)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert workers.ask(JSON, "get_session_data", {})["data"] == {}


def msgpack_update(value):
    """Return a request with `value`, which is encoded already."""
    args = {"key": "k", "value": msgspec.Raw(value)}
    request = {"id": next(ids), "command": "update_session_data", "args": args, "session_id": "s"}
    return msgspec.msgpack.encode(request)


def test_strings_of_messagepack_that_are_not_utf_8_are_bytes(workers):
    """Some hosts pack every binary as a string, including keys."""
    raw = b"\xa3" + NOT_UTF8
    assert workers.send(MSGPACK, msgpack_update(b"\x82" + raw + raw + b"\xa1t\xa1t"))["success"]
    for format in (MSGPACK, ETF):
        assert workers.read(format) == {NOT_UTF8: NOT_UTF8, "t": "t"}
    assert workers.read(JSON)["code"] == "not_encodable"


def test_extensions_and_timestamps_of_messagepack_are_unchanged(workers):
    """To the byte and the nanosecond; other formats cannot carry them."""
    for value in (b"\xc7\x03\x05abc", b"\xd7\xff" + bytes([0, 0, 0, 4, 0, 0, 0, 1])):
        assert workers.send(MSGPACK, msgpack_update(value))["success"]
        request = {"id": 1, "command": "get_session_data", "session_id": "s"}
        assert value in workers.worker.call(msgspec.msgpack.encode(request), 60)
        for format in (JSON, ETF):
            assert workers.read(format)["code"] == "not_encodable"


def test_a_key_as_text_and_as_bytes_is_an_error_in_etf(workers):
    """Keys in ETF are binaries, and nodes refuse a map with a repeated key."""
    assert workers.write(MSGPACK, {"a": 1, b"a": 2})["success"]
    assert workers.read(MSGPACK) == {"a": 1, b"a": 2}
    reply = workers.read(ETF)
    assert (reply["code"], "text and as bytes" in reply["error"]) == ("not_encodable", True)
    assert workers.write(MSGPACK, {"a": 1, b"b": 2})["success"]
    assert workers.read(ETF) == {"a": 1, "b": 2}


def test_keys_that_are_equal_in_python_remain_distinct(workers):
    """1 and true are two keys in MessagePack, and an error in other formats."""
    value = b"\x82\x01\xa1a\xc3\xa1b"
    assert workers.send(MSGPACK, msgpack_update(value))["success"]
    request = {"id": 1, "command": "get_session_data", "session_id": "s"}
    assert value in workers.worker.call(msgspec.msgpack.encode(request), 60)
    assert workers.read(ETF)["code"] == "not_encodable"


@pytest.mark.parametrize("value", [b'"\\ud800"', b'"\xff"', b"1e999", b"NaN", b"1" * 5000])
def test_json_that_cannot_be_read_is_refused(workers, value):
    """Nothing is stored."""
    frame = b'{"id":1,"command":"update_session_data","args":{"session_id":"s","key":"k","value":'
    assert not workers.send(JSON, frame + value + b"}}")["success"]
    assert workers.ask(JSON, "get_session_data", {})["data"] == {}


def test_a_value_that_a_format_cannot_carry_does_not_hide_others(workers):
    """The others can be read by key."""
    workers.write(ETF, NOT_UTF8, key="raw")
    workers.write(ETF, "text", key="text")
    reply = workers.call(JSON, "get_session_data", {})
    assert (reply["code"], reply["details"]["path"]) == ("not_encodable", "result.data.raw")
    assert workers.read(JSON, "text") == "text"


@pytest.mark.parametrize("depth", [100, 400, 500, 505])
@pytest.mark.parametrize("kind", ["maps", "lists"])
def test_deep_values_are_read_or_refused_in_one_short_line(workers, kind, depth):
    """The limit of depth depends on the format."""
    value = NOT_UTF8
    for _ in range(depth):
        value = {"key" * 100: value} if kind == "maps" else [value]
    for format in (MSGPACK, ETF):
        request = {"id": 1, "command": "update_session_data", "session_id": "s"}
        request["args"] = {"key": "k", "value": value}
        assert format.decode(workers.worker.call(format.encode(request), 60))["success"]
        for other in FORMATS:
            request = {"id": 2, "command": "get_session_data", "session_id": "s"}
            reply = other.decode(workers.worker.call(other.encode(request), 60))
            if reply["success"]:
                read = reply["result"]["data"]["k"]
                for _ in range(depth):
                    (read,) = read.values() if kind == "maps" else read
                assert read == NOT_UTF8
            else:
                assert other is not format
                assert reply["code"] == "not_encodable"
                assert len(reply["error"]) < 600
                assert len(reply["details"]["path"]) < 450


def test_buffers_beside_json_are_bytes(workers):
    """JSON itself would make them text."""
    from bridge._framing import Outbox

    outbox = Outbox()
    args = {"key": "k", "value": {"x": {"$buffer": 0}}}
    message = {"id": 1, "command": "update_session_data", "args": args, "session_id": "s"}
    outbox.append_multipart(JSON.encode_into, message, [NOT_UTF8])
    assert workers.send(JSON, outbox.payload())["success"]
    assert workers.read(MSGPACK) == {"x": NOT_UTF8}
    assert workers.read(JSON)["code"] == "not_encodable"


@pytest.mark.parametrize("place", [{"key": "k"}, {"operation": "merge"}, {"key": "k", "operation": "merge"}])
@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_text_that_is_not_utf8_beside_buffers(workers, format, place):
    """JSON has no bytes, so it is refused there, as it is without buffers."""
    from bridge._framing import Outbox

    outbox = Outbox()
    args = {**place, "value": {"a": "1234", "x": {"$buffer": 0}}}
    message = {"id": 1, "command": "update_session_data", "args": args, "session_id": "s"}
    outbox.append_multipart(format.encode_into, message, [NOT_UTF8])
    reply = workers.send(format, outbox.payload().replace(b"1234", b"12\xff4"))
    if format is JSON:
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args")
        assert reply["error"].startswith("args is not valid json: ")
    else:
        assert reply["success"]
        stored = workers.ask(MSGPACK, "get_session_data", {})["data"]
        assert (stored["k"] if "key" in place else stored) == {"a": b"12\xff4", "x": NOT_UTF8}


@pytest.mark.parametrize("kept", [True, False], ids=["readable", "a pid"])
def test_data_of_earlier_versions_is_read_by_the_same_rules(workers, kept):
    """They stored terms unchanged: atoms become text, and a pid cannot be read."""
    term = {Atom("a"): [Atom("b"), NOT_UTF8]} if kept else [Opaque(PID)]
    value = msgspec.msgpack.encode({"data": as_a_beam(term), "format": "etf"})
    store = SQLiteStore(workers.path)
    store.create("old", SessionSettings("", 60.0, Quota()), {("data", "k"): value})
    store.close()
    request = {"id": 1, "command": "get_session_data", "session_id": "old"}
    reply = workers.send(ETF, as_a_beam(request))
    if kept:
        assert reply["result"]["data"] == {"k": {"a": ["b", NOT_UTF8]}}
    else:
        assert (reply["code"], reply["details"]["path"]) == ("not_encodable", "result.data.k[0]")


# Values that all formats carry.
text = st.text(st.characters(exclude_categories=["Cs"]))
