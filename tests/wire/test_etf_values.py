"""Python values as external terms and terms as typed values."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
import pickle
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from bridge import Adapter, Atom, Dispatcher
from bridge._framing import Frame
from bridge.adapters.echo import adapter as echo
from bridge.errors import InvalidArgs
from bridge.wire import codec
from bridge.wire._etf import Encoder, decode, encode
from bridge.wire._frames import format_of
from bridge.wire.messages import Envelope, Incoming, Reply
from etf_values import compressed


@pytest.fixture(scope="module")
def dispatcher():
    return Dispatcher(echo)


def test_modes_of_binaries():
    """In each mode, as values and as keys."""
    data = encode({"k": ["ü", b"\xff"], b"\xff": 1})
    assert decode(data) == {"k": ["ü", b"\xff"], b"\xff": 1}
    assert decode(data, binaries="bytes") == {b"k": ["ü".encode(), b"\xff"], b"\xff": 1}
    assert decode(data, binaries="replace") == {"k": ["ü", "\ufffd"], "\ufffd": 1}
    assert decode(data, binaries="view") == {"k": [b"\xc3\xbc", b"\xff"], b"\xff": 1}
    with pytest.raises(ValueError, match="one of str, replace, bytes, view"):
        decode(data, binaries="text")


def test_views_keep_their_input_alive():
    """They are slices without a copy, of frames too."""
    for data in (encode(["x" * 3000]), Frame.of(encode(["x" * 3000]))):
        (view,) = decode(data, binaries="view")
        assert isinstance(view, memoryview)
        assert view.readonly
        assert view.obj is data
        del data
        assert view == b"x" * 3000


def test_keys_are_cached():
    """Short keys and atoms are the same objects in every message."""
    data = encode({"program_id": 1})
    assert next(iter(decode(data))) is next(iter(decode(data)))
    atom = b"w\x09undefined"
    assert decode(atom) is decode(atom)
    many = [encode({f"key {number}": number}) for number in range(5000)]
    assert [decode(data) for data in many] == [{f"key {n}": n} for n in range(5000)]


def test_only_known_atoms_are_encoded_as_atoms():
    """Others are binaries, so that the other end may decode with `:safe`."""
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


@pytest.mark.parametrize("value", OTHER_VALUES, ids=lambda value: type(value).__name__)
def test_other_values(value):
    """They have the same plain form as in MessagePack, except dates, which are text."""
    plain = msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview), str_keys=True, order=None)
    result = decode(encode(value), binaries="str")
    assert decode(encode(plain)) == result
    assert encode([value])[6:-1] == encode(value)[1:]


def test_values_without_a_form():
    """The errors are msgspec's; numbers that JSON cannot carry are errors too."""
    with pytest.raises(TypeError, match="Encoding objects of type object is unsupported"):
        encode({"a": object()})
    with pytest.raises(UnicodeEncodeError):
        encode("\ud800")
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not a number that ETF can carry"):
            encode([number])
    for raw in (b"", b"\x83"):
        with pytest.raises(ValueError, match="empty Raw"):
            encode(msgspec.Raw(raw))
    with pytest.raises(TypeError):
        encode(Encoder.__new__(Encoder).encode(Atom("x")))


def test_containers_that_change_meanwhile():
    """Code of a value may run while its container is encoded."""

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
    """Their version byte may be missing; compressed ones are inflated."""
    for raw in (b"a\x07", b"\x83a\x07", compressed(b"a\x07")):
        assert encode({"x": msgspec.Raw(raw)}) == encode({"x": 7})


def test_encode_into():
    """It works like msgspec's: the buffer ends after the message, and -1 means its end."""
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
    """They are copied unchanged, without being decoded."""
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
@pytest.mark.parametrize("type", [Envelope, Incoming, dict[str, Any], Inner])
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


def test_repeated_keys():
    """Valid hosts do not send them; none of the values is chosen."""
    twice = b"t\x00\x00\x00\x03" + (encode("id")[1:] + b"a\x01") * 2 + encode(["command", "x"])[6:-1]
    with pytest.raises(msgspec.ValidationError, match=r"got `bridge\.wire\._etf\.Opaque`"):
        decode(twice, type=Envelope)


def test_a_key_as_text_and_as_bytes_is_not_encodable():
    """Both are the same binary, and nodes refuse a map with a repeated key."""
    for value in ({"a": 1, b"a": 2}, [{"x": {b"": 1, "": 2}}]):
        with pytest.raises(ValueError, match="same key as text and as bytes"):
            encode(value)
    assert decode(encode({"a": 1, b"b": 2, b"\xff": 3, "\ufffd": 4})) is not None


def test_atoms_are_text_to_a_type():
    """Elixir hosts may write keys and names as atoms."""
    data = b"\x83t\x00\x00\x00\x03w\x02ida\x01w\x07commandd\x00\x04pingw\x04argsd\x00\x03nil"
    request = decode(data, type=Envelope)
    assert (request.id, request.command, type(request.command)) == (1, "ping", str)
    assert codec.ETF.decode_args(request.args, dict) == {}


def test_formats_are_detected_by_two_bytes():
    """A MessagePack map of three begins with the same byte, but continues with a string."""
    three = msgspec.msgpack.encode({"id": 1, "command": "ping", "args": {}})
    assert three[0] == encode({})[0] == 0x83
    assert format_of(three) is codec.MSGPACK
    for size in (1, 31, 32, 300, 70_000):
        assert format_of(msgspec.msgpack.encode({"k" * size: 1, 1: 1, 2: 2})) is codec.MSGPACK
    assert format_of(encode({})) is format_of(compressed(b"j")) is codec.ETF
    assert format_of(b"\x83") is codec.MSGPACK
    assert format_of(b"{}") is codec.JSON
    assert format_of(b"") is format_of(b"\xff") is None


def test_a_reply_begins_with_its_id(dispatcher):
    """A router can find it: the first key of the map is the binary `id`."""
    for command in ("ping", "nope"):
        reply = dispatcher.call(encode({"id": 5, "command": command}))
        assert reply[:2] == b"\x83t"
        assert reply[6:15] == b"m\x00\x00\x00\x02ida\x05"


def test_the_id_of_a_broken_message(dispatcher):
    """Its key may be an atom, and the message compressed; only a part is inflated."""
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


def test_errors_for_numbers_have_a_path(dispatcher):
    """As in JSON, in results and in events."""
    adapter = Adapter("numbers")
    adapter.command("give", lane="inline")(lambda args, context: {"x": [1.0, math.nan]})
    reply = Dispatcher(adapter).call(encode({"id": 1, "command": "give"}))
    failure = decode(reply)
    assert (failure["code"], failure["details"]) == ("not_encodable", {"path": "result.x[1]"})

    adapter.command("emit", lane="inline")(lambda args, context: context.emit("e", {"y": math.inf}))
    reply = Dispatcher(adapter).call(encode({"id": 1, "command": "emit", "stream": True}))
    assert decode(reply)["details"] == {"path": "data.y"}


def test_binaries_that_are_not_text():
    """They are bytes, an error with the path if text is expected, or decoded with replacements."""
    raw = msgspec.Raw(encode({"a": b"x\xff", "b": [b"y"]})[1:])
    assert codec.ETF.decode_args(raw, dict) == {"a": b"x\xff", "b": ["y"]}
    replaced = codec.ETF.decode_args(raw, dict[str, Any], undecodable="replace")
    assert replaced == {"a": "x\ufffd", "b": ["y"]}
    with pytest.raises(InvalidArgs, match=r"args\[\.\.\.\]: Expected `str`, got `bytes`"):
        codec.ETF.decode_args(raw, dict[str, str])
    for undecodable in ("refuse", "replace"):
        with pytest.raises(InvalidArgs, match="args is not valid etf"):
            codec.ETF.decode_args(msgspec.Raw(b"a"), dict, undecodable=undecodable)
