"""Erlang's external term format: each tag, each rule of docs/protocol.md, each limit."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
import pickle
import tracemalloc
import uuid
import zlib
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from bridge import Dispatcher
from bridge._framing import Frame
from bridge.adapter import Adapter
from bridge.adapters.echo import adapter as echo
from bridge.errors import InvalidArgs
from bridge.wire import _etf, codec
from bridge.wire._etf import Atom, Encoder, Opaque, decode, encode
from bridge.wire.messages import Incoming, Reply, Request
from bridge.worker.control import control

TERMS = {  # as OTP 26 and later write them
    b"a\x07": 7,
    b"b\xff\xff\xff\xff": -1,
    b"b\x00\x00\x01\x00": 256,
    b"b\x80\x00\x00\x00": -(2**31),
    b"n\x04\x00\x00\x00\x00\x80": 2**31,
    b"n\x05\x00\x00\x00\x00\x00\x01": 2**32,
    b"n\x08\x01" + b"\xff" * 8: -(2**64) + 1,
    b"n\x09\x00" + b"\0" * 8 + b"\x01": 2**64,
    b"o\x00\x00\x01\x00\x00" + b"\0" * 255 + b"\x01": 2**2040,
    b"F\x3f\xf8" + b"\0" * 6: 1.5,
    b"F\x80" + b"\0" * 7: -0.0,
    b"w\x03nil": None,
    b"w\x04true": True,
    b"w\x05false": False,
    b"w\x02ok": Atom("ok"),
    b"w\x02\xc3\xbc": Atom("ü"),
    b"v\x01\x02" + "ü".encode() * 129: Atom("ü" * 129),
    b"m\x00\x00\x00\x02hi": "hi",
    b"m\x00\x00\x00\x00": "",
    b"m\x00\x00\x00\x01\xff": b"\xff",
    b"j": [],
    b"k\x00\x02\x01\xff": [1, 255],
    b"l\x00\x00\x00\x01b\x00\x00\x01\x00j": [256],
    b"l\x00\x01\x00\x00" + b"a\x07" * 65536 + b"j": [7] * 65536,
    b"h\x00": (),
    b"h\x01a\x01": (1,),
    b"i\x00\x00\x01\x00" + b"a\x01" * 256: (1,) * 256,
    b"t\x00\x00\x00\x00": {},
    b"t\x00\x00\x00\x01m\x00\x00\x00\x01aa\x01": {"a": 1},
    b"t\x00\x00\x00\x01w\x01aa\x01": {Atom("a"): 1},
    b"t\x00\x00\x00\x01h\x01a\x01j": {(1,): []},
}
OLD_TERMS = {  # what older systems write goes out in the forms above
    b"c" + b"1.50000000000000000000e+00".ljust(31, b"\0"): 1.5,
    b"d\x00\x02ok": Atom("ok"),
    b"d\x00\x01\xfc": Atom("ü"),
    b"s\x02ok": Atom("ok"),
    b"s\x03nil": None,
    b"d\x00\x04true": True,
    b"v\x00\x02\xc3\xbc": Atom("ü"),
    b"l\x00\x00\x00\x02a\x01a\x02j": [1, 2],
    b"n\x01\x00\x07": 7,
    b"k\x00\x00": [],
}
NODE = b"w\x05n@far"
OLD_PID = b"g" + NODE + bytes(9)
OPAQUE_TERMS = [
    b"X" + NODE + bytes(12),
    OLD_PID,
    b"Y" + NODE + bytes(8),  # ports
    b"x" + NODE + bytes(12),
    b"f" + NODE + bytes(5),
    b"Z\x00\x02" + NODE + bytes(12),  # references
    b"r\x00\x02" + NODE + bytes(9),
    b"e" + b"d\x00\x01n" + bytes(5),
    b"p\x00\x00\x00\x08free",  # funs
    b"qw\x01mw\x01fa\x01",
    b"u\x00\x00\x00\x01" + OLD_PID + b"w\x01ma\x01a\x02m\x00\x00\x00\x01\xff",
    b"M\x00\x00\x00\x02\x03\xff\xe0",  # bits
    b"l\x00\x00\x00\x01a\x01a\x02",  # an improper list
    b"t\x00\x00\x00\x01ja\x01",  # maps that no dict can hold: keys not hashable,
    b"t\x00\x00\x00\x02t\x00\x00\x00\x00h\x01a\x05m\x00\x00\x00\x01aa\x01",
    b"t\x00\x00\x00\x02a\x01a\x01F\x3f\xf0\0\0\0\0\0\0a\x02",  # or equal in Python
    b"t\x00\x00\x00\x02a\x01a\x01w\x04truea\x02",
    b"t\x00\x00\x00\x02w\x01aa\x01m\x00\x00\x00\x01aa\x02",
]
MALFORMED = {
    b"": "truncated",
    b"\x83": "truncated",
    b"y": "tag 121 is not accepted",
    b"R\x00": "tag 82 is not accepted",
    b"\x83D\x00j": "tag 68 is not accepted",
    b"\x83\x83j": "tag 131 is not accepted",
    b"jj": r"trailing characters \(byte 1\)",
    b"F\x7f\xf0" + bytes(6): "no finite number",
    b"F\x7f\xf8" + bytes(6): "no finite number",
    b"c" + b"inf".ljust(31, b"\0"): "no finite number",
    b"c" + b"1_0".ljust(31, b"\0"): "no finite number",
    b"c" + b"1e999".ljust(31, b"\0"): "no finite number",
    b"c" + bytes(31): "no finite number",
    b"w\x01\xff": "not UTF-8",
    b"v\x00\x21" + b"\xff" * 33: "not UTF-8",
    b"Xj" + bytes(12): "a node that is no atom",
    b"p\x00\x00\x00\x03": "shorter than its length",
    **{tag + b"\xff" * 4 + b"jjj": "truncated" for tag in (b"l", b"i", b"t", b"m", b"M", b"u")},
    b"o\xff\xff\xff\xff\x00": "truncated",
    b"p\xff\xff\xff\xff": "truncated",
}


@pytest.fixture(scope="module")
def dispatcher():
    dispatcher = Dispatcher(echo)
    dispatcher.add(control(dispatcher))
    return dispatcher


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types all the way down."""
    return left == right and repr(left) == repr(right)


@pytest.mark.parametrize(("data", "value"), TERMS.items(), ids=lambda each: repr(each)[:30])
def test_terms(data, value):
    """Both ways, to the byte; the version byte may be missing."""
    encoder = Encoder(atoms=["ok", "ü", "a", "ü" * 129])
    assert same(decode(data), value)
    assert same(decode(b"\x83" + data), value)
    assert encoder.encode(value) == b"\x83" + data


@pytest.mark.parametrize(("data", "value"), OLD_TERMS.items(), ids=lambda each: repr(each)[:30])
def test_old_terms(data, value):
    """They are read."""
    assert same(decode(data), value)


@pytest.mark.parametrize("data", OPAQUE_TERMS)
def test_opaque_terms(data):
    """They go back as they came, also from inside other terms, and are values among others."""
    value = decode(data)
    assert value == Opaque(data)
    assert encode(value) == b"\x83" + data
    inside = b"t\x00\x00\x00\x01" + b"m\x00\x00\x00\x01a" + b"l\x00\x00\x00\x02" + data * 2 + b"j"
    assert encode(decode(inside)) == b"\x83" + inside
    assert len({value, Opaque(data), Opaque(b"j"), data}) == 3
    assert eval(repr(value)) == pickle.loads(pickle.dumps(value)) == value


def test_an_opaque_is_one_whole_term():
    """What is no term cannot go out as one."""
    for data in (b"", b"a", b"jj", b"\x83j"):
        with pytest.raises(msgspec.DecodeError):
            Opaque(data)
    assert encode(Opaque.__new__(Opaque)) == b"\x83j"


@pytest.mark.parametrize(("data", "words"), MALFORMED.items())
def test_malformed_terms(data, words):
    """DecodeError, whatever is announced, and nothing is allocated for it."""
    tracemalloc.start()
    with pytest.raises(msgspec.DecodeError, match=words):
        decode(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_containers_share_what_is_left():
    """Each of them fits into the rest of the message, all of them do not."""
    inside = b"".join(b"l" + (90_000 - 1000 * n).to_bytes(4, "big") for n in range(50))
    tracemalloc.start()
    with pytest.raises(msgspec.DecodeError, match="truncated"):
        decode(inside + b"j" * 100_000)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_depth():
    """Both ways; a structure that holds itself ends there."""
    deepest: Any = []
    for _ in range(_etf.MAX_DEPTH):
        deepest = [deepest]
    assert decode(encode(deepest)) == deepest
    data = encode(deepest)[1:]
    with pytest.raises(RecursionError):
        encode([deepest])
    for wrapped in (
        b"l\x00\x00\x00\x01" + data + b"j",
        b"h\x01" + data,
        b"t\x00\x00\x00\x01j" + data,
        b"h\x01" * 100_000 + b"j",
    ):
        with pytest.raises(RecursionError):
            decode(wrapped)
    assert isinstance(decode(b"l\x00\x00\x00\x01" * 3 + b"j" * 3 + b"a\x01"), Opaque)
    cyclic: list[Any] = []
    cyclic.append({"a": (cyclic,)})
    with pytest.raises(RecursionError):
        encode(cyclic)


def test_opaque_terms_in_opaque_terms():
    """Each is copied with all that is in it; so there is an end to their size."""

    def nested(levels: int, size: int) -> bytes:
        binary = b"m" + size.to_bytes(4, "big") + bytes(size)
        return b"l\x00\x00\x00\x01" * levels + binary + b"a\x01" * levels

    assert isinstance(decode(nested(500, 100_000)), Opaque)
    with pytest.raises(msgspec.DecodeError, match="too much in terms"):
        decode(nested(500, 200_000))


def compressed(data: bytes, announced: int | None = None) -> bytes:
    size = len(data) if announced is None else announced
    return b"\x83P" + size.to_bytes(4, "big") + zlib.compress(data)


def test_compressed_terms():
    """They hold exactly what they announce, at most 64 MiB, and no compressed term."""
    data = encode({"a": "x" * 5000})[1:]
    assert decode(compressed(data)) == {"a": "x" * 5000}
    for broken, words in {
        compressed(data, len(data) + 1): "not as long",
        compressed(data, len(data) - 1): "not as long",
        compressed(data, 0): "not as long",
        compressed(data) + b"x": "not as long",
        compressed(data)[:-1]: "not as long",
        compressed(data, 2**32 - 1): "more than 67108864",
        b"\x83P\x00\x00\x00\x05hello": "does not inflate",
        b"\x83P\x00": "truncated",
        compressed(b""): "truncated",
        compressed(compressed(data)[1:]): "a compressed term in a compressed term",
        compressed(b"\x83" + data): "a compressed term in a compressed term",
    }.items():
        with pytest.raises(msgspec.DecodeError, match=words):
            decode(broken)


def test_what_binaries_become():
    """In each mode, as values and as keys."""
    data = encode({"k": ["ü", b"\xff"], b"\xff": 1})
    assert decode(data) == {"k": ["ü", b"\xff"], b"\xff": 1}
    assert decode(data, binaries="bytes") == {b"k": ["ü".encode(), b"\xff"], b"\xff": 1}
    assert decode(data, binaries="replace") == {"k": ["ü", "\ufffd"], "\ufffd": 1}
    assert decode(data, binaries="view") == {"k": [b"\xc3\xbc", b"\xff"], b"\xff": 1}
    with pytest.raises(ValueError, match="one of str, replace, bytes, view"):
        decode(data, binaries="text")


def test_views_keep_their_input():
    """They are slices of it, without a copy, also of a frame."""
    for data in (encode(["x" * 3000]), Frame.of(encode(["x" * 3000]))):
        (view,) = decode(data, binaries="view")
        assert isinstance(view, memoryview)
        assert view.readonly
        assert view.obj is data
        del data
        assert view == b"x" * 3000


def test_keys_are_made_once():
    """Short keys and atoms are the same objects in every message."""
    data = encode({"program_id": 1})
    assert next(iter(decode(data))) is next(iter(decode(data)))
    atom = b"w\x09undefined"
    assert decode(atom) is decode(atom)
    many = [encode({f"key {number}": number}) for number in range(5000)]
    assert [decode(data) for data in many] == [{f"key {n}": n} for n in range(5000)]


def test_atoms_go_out_from_the_list_only():
    """Any other is a binary, so that the other end may decode with `:safe`."""
    assert encode(Atom("ok")) == encode("ok")
    assert Encoder(atoms=["ok"]).encode([Atom("ok"), Atom("no"), "ok"]) == (
        b"\x83l\x00\x00\x00\x03w\x02okm\x00\x00\x00\x02nom\x00\x00\x00\x02okj"
    )
    assert Encoder(atoms=["ok"]).encode({Atom("ok"): 1})[6:10] == b"w\x02ok"
    assert (repr(Atom("ok")), Atom("ok"), hash(Atom("ok"))) == ("Atom('ok')", "ok", hash("ok"))
    assert pickle.loads(pickle.dumps(Atom("ok"))) == "ok"
    with pytest.raises(OverflowError):
        Encoder(atoms=["x" * 65536]).encode(Atom("x" * 65536))


class Colour(enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Pair(collections.namedtuple("Pair", "left right")):
    pass


@dataclass
class Point:
    x: float
    data: bytes


class Tagged(msgspec.Struct, tag="t", tag_field="kind", rename="camel"):
    first_name: str
    maybe: int | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True, tag=True):
    a: int
    b: bytes


class Sparse(msgspec.Struct, omit_defaults=True):
    a: int
    b: int = 1
    c: list[int] = []
    d: dict[str, int] = {}


OTHER_VALUES = [
    Colour.RED,
    Number.ONE,
    Pair(1, "b"),
    Point(1.5, b"\xff"),
    Tagged("Ada"),
    Tagged("Ada", 5),
    Row(1, b"x"),
    Sparse(1),
    Sparse(1, 2, [3], {"d": 4}),
    Reply(1, True, {"a": [1]}, "2026"),
    collections.OrderedDict(a=1),
    collections.defaultdict(list, a=[1]),
    {1, 2},
    frozenset({1}),
    bytearray(b"\xff"),
    memoryview(b"\xff\xfe"),
    datetime.date(2026, 1, 2),
    datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC),
    uuid.UUID(int=5),
    decimal.Decimal("1.50"),
]


@pytest.mark.parametrize("value", OTHER_VALUES, ids=repr)
def test_other_values(value):
    """They go out as the same plain values as in MessagePack, but for dates: as text."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview), str_keys=True, order=None)
    result = decode(encode(value), binaries="str")
    assert decode(encode(plain)) == result
    assert encode([value])[6:-1] == encode(value)[1:]


def test_values_without_a_form():
    """The errors are msgspec's; what JSON cannot carry of numbers, ETF cannot either."""
    with pytest.raises(TypeError, match="Encoding objects of type object is unsupported"):
        encode({"a": object()})
    with pytest.raises(UnicodeEncodeError):
        encode("\ud800")
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="no number that ETF can carry"):
            encode([number])
    for raw in (b"", b"\x83"):
        with pytest.raises(ValueError, match="empty Raw"):
            encode(msgspec.Raw(raw))
    with pytest.raises(TypeError):
        encode(Encoder.__new__(Encoder).encode(Atom("x")))


def test_containers_that_change_meanwhile():
    """A value's own code may run while they are written."""

    @dataclass
    class Emptying:
        x: int

        def __getattribute__(self, name: str) -> Any:
            container.clear()
            return 1 if name == "x" else object.__getattribute__(self, name)

    for container in ([Emptying(1), 2], {"a": Emptying(1), "b": 2}):
        with pytest.raises(RuntimeError, match="has changed while it was encoded"):
            encode(container)


def test_raw_terms_are_embedded():
    """With their version byte or without; a compressed one is inflated."""
    for raw in (b"a\x07", b"\x83a\x07", compressed(b"a\x07")):
        assert encode({"x": msgspec.Raw(raw)}) == encode({"x": 7})


def test_encode_into():
    """As msgspec's: the buffer ends behind what was written; -1 is its end."""
    for size, offset in [(0, 0), (0, 9), (9, 5), (5000, 7), (9, -1)]:
        for value in (1, {"a": "x" * 300}):
            ours, theirs = bytearray(size), bytearray(size)
            assert Encoder().encode_into(value, ours, offset) is None
            msgspec.msgpack.Encoder().encode_into(value, theirs, offset)
            at = size if offset == -1 else offset
            assert ours == bytes(at) + encode(value)
            assert len(theirs) - at == len(msgspec.msgpack.encode(value))
    with pytest.raises(ValueError, match="offset must be >= -1"):
        Encoder().encode_into(1, bytearray(), -2)


class Inner(msgspec.Struct):
    raw: msgspec.Raw
    data: bytes | None = None


class Outer(msgspec.Struct):
    one: Inner | None = None
    many: list[Inner] = []
    named: dict[str, Inner] = {}
    raws: list[msgspec.Raw] = []
    outer: Outer | None = None


def test_raw_parts_of_a_type():
    """They are taken as they stand, wherever they are: nothing in them is looked at."""
    inner = {"raw": {"x": [1]}, "data": "text"}
    value = {"one": inner, "many": [inner], "named": {"n": inner}, "raws": [1, "a"]}
    outer = decode(encode({**value, "outer": value}), type=Outer)
    for found in (outer.one, outer.many[0], outer.named["n"], outer.outer.one):
        assert bytes(found.raw) == encode({"x": [1]})[1:]
        assert found.data == b"text"
    assert [bytes(raw) for raw in outer.raws] == [b"a\x01", encode("a")[1:]]
    assert bytes(decode(encode("a"), type=msgspec.Raw)) == encode("a")[1:]
    long = Frame.of(encode({"raw": "x" * 5000}))
    assert bytes(decode(long, type=Inner).raw) == encode("x" * 5000)[1:]


ENVELOPES: list[Any] = [
    {"id": 1, "command": "ping"},
    {"id": "x", "command": "ping", "timeout_ms": 5, "stream": True, "unknown": [1]},
    {"id": 2**63, "command": "", "session_id": None, "timeout_ms": 2.5, "traceparent": "t"},
    {"id": 1, "success": True, "result": [1, {"a": None}], "timing": {"run_us": 1.5}},
    {"id": 1},
    {"command": "ping"},
    {"id": None, "command": "ping"},
    {"id": 1.5, "command": "ping"},
    {"id": True, "command": "ping"},
    {"id": 1, "command": 5},
    {"id": 1, "command": b"\xff"},
    {"id": 1, "command": "ping", "timeout_ms": "soon"},
    {"id": 1, "command": "ping", "stream": 1},
    {"id": 1, "command": "ping", "session_id": ["a"]},
    {1: 2},
    [1],
    "text",
]


@pytest.mark.parametrize("value", ENVELOPES, ids=repr)
@pytest.mark.parametrize("type", [Request, Incoming, dict[str, Any], Inner])
def test_types_say_the_same_as_in_messagepack(type, value):
    """The same value, or the same error to the word, where msgspec has one word for all formats:
    it calls null None in MessagePack, and does not say what a key was instead."""

    def outcome(format: codec.Format) -> Any:
        try:
            decoded = format.decode(format.encode(value), type)
        except msgspec.ValidationError as error:
            return str(error).replace("`None`", "`null`").replace(", got `int` - at `key`", " - at `key`")
        fields = msgspec.structs.astuple(decoded) if isinstance(decoded, msgspec.Struct) else ()
        return decoded, [field.__class__ for field in fields]

    assert outcome(codec.ETF) == outcome(codec.MSGPACK)


def test_keys_that_come_twice():
    """No sound host sends them; they are no reason to pick one."""
    twice = b"t\x00\x00\x00\x03" + (encode("id")[1:] + b"a\x01") * 2 + encode(["command", "x"])[6:-1]
    with pytest.raises(msgspec.ValidationError, match=r"got `bridge\._etf\.Opaque`"):
        decode(twice, type=Request)


def test_one_key_as_text_and_as_bytes_is_not_written():
    """Both are the same binary, and no node reads a map with a key twice."""
    for value in ({"a": 1, b"a": 2}, [{"x": {b"": 1, "": 2}}]):
        with pytest.raises(ValueError, match="same key as text and as bytes"):
            encode(value)
    assert decode(encode({"a": 1, b"b": 2, b"\xff": 3, "\ufffd": 4})) is not None


def test_atoms_are_text_to_a_type():
    """Elixir's hosts may write keys and names as atoms."""
    data = b"\x83t\x00\x00\x00\x03w\x02ida\x01w\x07commandd\x00\x04pingw\x04argsd\x00\x03nil"
    request = decode(data, type=Request)
    assert (request.id, request.command, type(request.command)) == (1, "ping", str)
    assert codec.ETF.decode_args(request.args, dict) == {}


def test_formats_are_told_by_two_bytes():
    """A MessagePack map of three begins with the same byte and goes on with a string."""
    three = msgspec.msgpack.encode({"id": 1, "command": "ping", "args": {}})
    assert three[0] == encode({})[0] == 0x83
    assert codec.format_of(three) is codec.MSGPACK
    for size in (1, 31, 32, 300, 70_000):
        assert codec.format_of(msgspec.msgpack.encode({"k" * size: 1, 1: 1, 2: 2})) is codec.MSGPACK
    assert codec.format_of(encode({})) is codec.format_of(compressed(b"j")) is codec.ETF
    assert codec.format_of(b"\x83") is codec.MSGPACK
    assert codec.format_of(b"{}") is codec.JSON
    assert codec.format_of(b"") is codec.format_of(b"\xff") is None


def test_a_reply_begins_with_its_id(dispatcher):
    """So that a router finds it: a map, whose first key is the binary `id`."""
    for command in ("ping", "nope"):
        reply = dispatcher.call(encode({"id": 5, "command": command}))
        assert reply[:2] == b"\x83t"
        assert reply[6:15] == b"m\x00\x00\x00\x02ida\x05"


def test_the_id_of_a_broken_message(dispatcher):
    """Its key may be an atom, its message compressed; too much is not inflated for it."""
    for message, found in {
        encode({"command": 5, "id": "x"}): "x",
        b"\x83t\x00\x00\x00\x02w\x02ida\x07m": 7,
        b"\x83t\x00\x00\x00\x02d\x00\x02ida\x07m": 7,
        compressed(encode({"id": 3})[1:]): 3,
        compressed(encode({"a": "x" * 100_000, "id": 3})[1:]): None,
        encode({"id": 1.5}): None,
        encode({"id": True}): None,
        b"\x83j": None,
        b"\x83P": None,
    }.items():
        assert codec.ETF.find_id(message) == found
        if found is not None:
            assert decode(dispatcher.call(message))["id"] == found


def test_numbers_that_do_not_go_out_tell_their_place(dispatcher):
    """As in JSON: in a result, and in what an event carries."""
    adapter = Adapter("numbers")
    adapter.command("give", lane="inline")(lambda args, context: {"x": [1.0, math.nan]})
    reply = Dispatcher(adapter).call(encode({"id": 1, "command": "give"}))
    failure = decode(reply)
    assert (failure["code"], failure["details"]) == ("not_encodable", {"path": "result.x[1]"})

    adapter.command("emit", lane="inline")(lambda args, context: context.emit("e", {"y": math.inf}))
    reply = Dispatcher(adapter).call(encode({"id": 1, "command": "emit", "stream": True}))
    assert decode(reply)["details"] == {"path": "data.y"}


def test_binaries_that_are_not_text():
    """Bytes, an error with its place where text is wanted, or what can be read of them."""
    raw = msgspec.Raw(encode({"a": b"x\xff", "b": [b"y"]})[1:])
    assert codec.ETF.decode_args(raw, dict) == {"a": b"x\xff", "b": ["y"]}
    replaced = codec.ETF.decode_args(raw, dict[str, Any], undecodable="replace")
    assert replaced == {"a": "x\ufffd", "b": ["y"]}
    with pytest.raises(InvalidArgs, match=r"args\[\.\.\.\]: Expected `str`, got `bytes`"):
        codec.ETF.decode_args(raw, dict[str, str])
    for undecodable in ("refuse", "replace"):
        with pytest.raises(InvalidArgs, match="args is not valid etf"):
            codec.ETF.decode_args(msgspec.Raw(b"a"), dict, undecodable=undecodable)
