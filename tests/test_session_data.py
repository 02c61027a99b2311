"""Session data means the same in each format: written in one, read in another, by any worker."""

from __future__ import annotations

import datetime
import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import Dispatcher
from bridge.adapters.echo import adapter
from bridge.records import Quota, Settings
from bridge.wire._etf import Atom, Encoder, Opaque
from bridge.wire.codec import ETF, JSON, MSGPACK, by_name
from bridge.worker.control import control
from bridge.worker.stores.sqlite import Store

FORMATS = (JSON, MSGPACK, ETF)
ids = itertools.count(1)

# Atoms go out as atoms, as a host on the BEAM sends them.
as_a_beam = Encoder(["a", "b", "f", "hello", "k", "ok", "tensor", "u", "x"]).encode


class Workers:
    """Workers on one store; `steal` and `restart` change who answers."""

    def __init__(self, path):
        self.path = path
        self.stores = []
        self.start()
        self.ask(JSON, "create_session", {"durable": True})

    def start(self):
        self.stores.append(Store(self.path))
        self.worker = Dispatcher(adapter, store=self.stores[-1])
        self.worker.add(control(self.worker))

    steal = start

    def restart(self):
        self.close()
        self.start()

    def close(self):
        for store in self.stores:
            store.close()
        self.stores = []

    def call(self, format, command, args):
        request = {"id": next(ids), "command": command, "args": args, "session_id": "s"}
        frame = as_a_beam(request) if format is ETF else format.encode(request)
        return self.send(format, frame)

    def send(self, format, frame):
        reply = self.worker.call(frame, 60)
        if format is ETF:
            assert not foreign_atoms(ETF.decode(reply))
        return format.decode(reply)

    def ask(self, format, command, args):
        reply = self.call(format, command, args)
        assert reply["success"], reply
        return reply["result"]

    def write(self, format, value, key="k"):
        return self.call(format, "update_session_data", {"key": key, "value": value})

    def read(self, format, key="k"):
        reply = self.call(format, "get_session_data", {"key": key})
        return reply["result"]["data"][key] if reply["success"] else reply


def foreign_atoms(value):
    """Atoms that `binary_to_term(_, [:safe])` may refuse, and terms that hold some."""
    if isinstance(value, Atom | Opaque):
        return [value]
    if isinstance(value, dict):
        return foreign_atoms([*value.keys(), *value.values()])
    if isinstance(value, tuple) and value[:1] == ("tensor",):
        return []
    return [atom for each in value for atom in foreign_atoms(each)] if is_many(value) else []


def is_many(value):
    return isinstance(value, list | tuple)


@pytest.fixture
def workers(tmp_path):
    workers = Workers(tmp_path / "store.db")
    yield workers
    workers.close()


NOT_UTF8 = b"\xff\x00\x80"


def every(value):
    return {format.name: value for format in FORMATS}


def beside(value, json=None, msgpack=None, etf=None):
    """What each format reads; None: the same; "error": it cannot carry the value."""
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


def same(read, expected):
    """Equal, and of the same types all through."""
    if type(read) is not type(expected):
        return False
    if isinstance(read, dict):
        pairs = zip(sorted(read, key=repr), sorted(expected, key=repr), strict=False)
        are_same = all(same(a, b) and same(read[a], expected[b]) for a, b in pairs)
        return len(read) == len(expected) and are_same
    if is_many(read):
        return len(read) == len(expected) and all(map(same, read, expected))
    if isinstance(read, float) and math.isnan(read):
        return math.isnan(expected)
    return read == expected


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "nested"])
@pytest.mark.parametrize(("name", "value", "written", "expected"), VALUES, ids=NAMES)
def test_a_value_is_the_same_in_every_format(workers, name, value, written, expected, nested):
    """Or it is an error that names the key; also after a restart, and for another worker."""
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
    """ETF's atoms of tensors as text, views as bytes, to be compared."""
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
    """With the path; nothing is kept."""
    for value, path in (
        (REFUSED[name], "args.value"),
        ({"a": [1, (REFUSED[name],)]}, "args.value.a[1][0]"),
        ({REFUSED[name]: 1}, "args.value"),
    ):
        reply = workers.write(ETF, value)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert workers.ask(JSON, "get_session_data", {})["data"] == {}


def msgpack_update(value):
    """A request with `value`, which is encoded already."""
    args = {"key": "k", "value": msgspec.Raw(value)}
    request = {"id": next(ids), "command": "update_session_data", "args": args, "session_id": "s"}
    return msgspec.msgpack.encode(request)


def test_strings_of_messagepack_that_are_not_utf_8_are_bytes(workers):
    """As some hosts pack every binary; keys too."""
    raw = b"\xa3" + NOT_UTF8
    assert workers.send(MSGPACK, msgpack_update(b"\x82" + raw + raw + b"\xa1t\xa1t"))["success"]
    for format in (MSGPACK, ETF):
        assert workers.read(format) == {NOT_UTF8: NOT_UTF8, "t": "t"}
    assert workers.read(JSON)["code"] == "not_encodable"


def test_extensions_and_exact_timestamps_of_messagepack_stay_what_they_are(workers):
    """To the byte, nanoseconds too; other formats cannot carry them."""
    for value in (b"\xc7\x03\x05abc", b"\xd7\xff" + bytes([0, 0, 0, 4, 0, 0, 0, 1])):
        assert workers.send(MSGPACK, msgpack_update(value))["success"]
        request = {"id": 1, "command": "get_session_data", "session_id": "s"}
        assert value in workers.worker.call(msgspec.msgpack.encode(request), 60)
        for format in (JSON, ETF):
            assert workers.read(format)["code"] == "not_encodable"


def test_text_and_bytes_of_one_key_are_no_map_of_erlang(workers):
    """Its keys are binaries, and no node reads a map that has one of them twice."""
    assert workers.write(MSGPACK, {"a": 1, b"a": 2})["success"]
    assert workers.read(MSGPACK) == {"a": 1, b"a": 2}
    reply = workers.read(ETF)
    assert (reply["code"], "text and as bytes" in reply["error"]) == ("not_encodable", True)
    assert workers.write(MSGPACK, {"a": 1, b"b": 2})["success"]
    assert workers.read(ETF) == {"a": 1, "b": 2}


def test_keys_that_python_cannot_tell_apart_are_no_others(workers):
    """1 and true stay two keys in MessagePack, and are an error elsewhere."""
    value = b"\x82\x01\xa1a\xc3\xa1b"
    assert workers.send(MSGPACK, msgpack_update(value))["success"]
    request = {"id": 1, "command": "get_session_data", "session_id": "s"}
    assert value in workers.worker.call(msgspec.msgpack.encode(request), 60)
    assert workers.read(ETF)["code"] == "not_encodable"


@pytest.mark.parametrize("value", [b'"\\ud800"', b'"\xff"', b"1e999", b"NaN", b"1" * 5000])
def test_json_that_cannot_be_read_is_refused(workers, value):
    """Nothing is kept in its place."""
    frame = b'{"id":1,"command":"update_session_data","args":{"session_id":"s","key":"k","value":'
    assert not workers.send(JSON, frame + value + b"}}")["success"]
    assert workers.ask(JSON, "get_session_data", {})["data"] == {}


def test_one_value_that_a_format_cannot_carry_hides_no_other(workers):
    """They are read by their keys."""
    workers.write(ETF, NOT_UTF8, key="raw")
    workers.write(ETF, "text", key="text")
    reply = workers.call(JSON, "get_session_data", {})
    assert (reply["code"], reply["details"]["path"]) == ("not_encodable", "result.data.raw")
    assert workers.read(JSON, "text") == "text"


@pytest.mark.parametrize("depth", [100, 400, 500, 505])
@pytest.mark.parametrize("kind", ["maps", "lists"])
def test_deep_values_are_read_or_refused_in_one_short_line(workers, kind, depth):
    """Each format has a limit of its own."""
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
    """JSON itself would make text of them."""
    from bridge._framing import Outbox

    outbox = Outbox()
    args = {"key": "k", "value": {"x": {"$buffer": 0}}}
    message = {"id": 1, "command": "update_session_data", "args": args, "session_id": "s"}
    outbox.append_multipart(JSON.encode_into, message, [NOT_UTF8])
    assert workers.send(JSON, outbox.payload())["success"]
    assert workers.read(MSGPACK) == {"x": NOT_UTF8}
    assert workers.read(JSON)["code"] == "not_encodable"


@pytest.mark.parametrize("kept", [True, False], ids=["readable", "a pid"])
def test_data_of_earlier_versions_is_read_by_the_same_rules(workers, kept):
    """They kept terms as they came: atoms become text, a pid cannot be read any more."""
    term = {Atom("a"): [Atom("b"), NOT_UTF8]} if kept else [Opaque(PID)]
    value = msgspec.msgpack.encode({"data": as_a_beam(term), "format": "etf"})
    store = Store(workers.path)
    store.create("old", Settings("", 60.0, Quota()), {("data", "k"): value})
    store.close()
    request = {"id": 1, "command": "get_session_data", "session_id": "old"}
    reply = workers.send(ETF, as_a_beam(request))
    if kept:
        assert reply["result"]["data"] == {"k": {"a": ["b", NOT_UTF8]}}
    else:
        assert (reply["code"], reply["details"]["path"]) == ("not_encodable", "result.data.k[0]")


def update(workers, format=JSON, **args):
    return workers.call(format, "update_session_data", args)


def data(workers):
    return workers.ask(JSON, "get_session_data", {})["data"]


def test_merge_with_a_key_merges_into_what_the_key_has(workers):
    """Into its map; where the key has nothing, the map is put there."""
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
    """The result is read in all."""
    update(workers, first, operation="merge", key="k", value={"a": 1, "b": [1.5]})
    update(workers, second, operation="merge", key="k", value={"a": "x", "c": True})
    for format in FORMATS:
        assert workers.read(format) == {"a": "x", "b": [1.5], "c": True}


def test_a_merge_changes_no_value_that_the_other_format_cannot_carry(workers):
    """It is kept in the format that carries both; where none does, nothing is changed."""
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
        ({"operation": "set", "value": 1}, "args.key", "needs a key"),
        ({"operation": "delete"}, "args.key", "needs a key"),
        ({"operation": "explode", "key": "a"}, "args.operation", "set, put, update, delete"),
        ({"operation": "x" * 100_000}, "args.operation", "unknown operation"),
    ],
)
def test_wrong_updates_are_refused_in_words(workers, args, path, words):
    """And change nothing."""
    update(workers, key="n", value=1)
    update(workers, key="m", value={"a": 0})
    reply = update(workers, **args)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert words in reply["error"]
    assert len(reply["error"]) < 500
    assert data(workers) == {"n": 1, "m": {"a": 0}}


def test_keys_that_are_no_text_are_no_keys_of_session_data(workers):
    """A merge without a key needs strings; atoms are."""
    for wrong in ({1: 2}, {NOT_UTF8: 1}):
        reply = update(workers, ETF, operation="merge", value=wrong)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.value")
        assert "keys are strings" in reply["error"]
    assert update(workers, ETF, operation="merge", value={Atom("a"): 1})["success"]
    assert data(workers) == {"a": 1}


@pytest.mark.parametrize("operation", ["set", "put", "update"])
def test_the_names_of_setting(workers, operation):
    """Without a value the key has null."""
    assert update(workers, operation=operation, key="k", value=1)["result"]["operation"] == operation
    assert update(workers, operation=operation, key="l")["success"]
    assert data(workers) == {"k": 1, "l": None}
    for delete in ("delete", "remove"):
        assert update(workers, operation=delete, key=f"{delete} k"[-1], value="ignored")["success"]
    assert data(workers) == {"l": None}


# Values that all formats carry.
text = st.text(st.characters(exclude_categories=["Cs"]))
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
    """Never another value; as `neutral` says what each format writes."""
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
    """Whether the format has a form for that value."""
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
    """What a value means once the format has carried it: in ETF, text and bytes are one."""
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
