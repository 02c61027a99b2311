"""External term format: each tag, each malformed term, each limit."""

from __future__ import annotations

import pickle
import tracemalloc
from typing import Any

import msgspec
import pytest

from bridge import Atom, Opaque
from bridge.wire import _etf
from bridge.wire._etf import Encoder, decode, encode
from etf_values import compressed

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
    b"F\x7f\xf0" + bytes(6): "not finite",
    b"F\x7f\xf8" + bytes(6): "not finite",
    b"c" + b"inf".ljust(31, b"\0"): "not finite",
    b"c" + b"1_0".ljust(31, b"\0"): "not finite",
    b"c" + b"1e999".ljust(31, b"\0"): "not finite",
    b"c" + bytes(31): "not finite",
    b"w\x01\xff": "not UTF-8",
    b"v\x00\x21" + b"\xff" * 33: "not UTF-8",
    b"Xj" + bytes(12): "a node that is not an atom",
    b"p\x00\x00\x00\x03": "shorter than its length",
    **{tag + b"\xff" * 4 + b"jjj": "truncated" for tag in (b"l", b"i", b"t", b"m", b"M", b"u")},
    b"o\xff\xff\xff\xff\x00": "truncated",
    b"p\xff\xff\xff\xff": "truncated",
}


def same(left: Any, right: Any) -> bool:
    """Return whether two values are equal and have equal types at every level."""
    return left == right and repr(left) == repr(right)


@pytest.mark.parametrize(("data", "value"), TERMS.items(), ids=lambda each: repr(each)[:30])
def test_terms(data, value):
    """They are encoded and decoded byte for byte; the version byte may be missing."""
    encoder = Encoder(atoms=["ok", "ü", "a", "ü" * 129])
    assert same(decode(data), value)
    assert same(decode(b"\x83" + data), value)
    assert encoder.encode(value) == b"\x83" + data


@pytest.mark.parametrize(("data", "value"), OLD_TERMS.items(), ids=lambda each: repr(each)[:30])
def test_old_terms(data, value):
    """Obsolete terms can be decoded."""
    assert same(decode(data), value)


@pytest.mark.parametrize("data", OPAQUE_TERMS)
def test_opaque_terms(data):
    """They are encoded unchanged, also inside other terms, and appear among other values."""
    value = decode(data)
    assert value == Opaque(data)
    assert encode(value) == b"\x83" + data
    inside = b"t\x00\x00\x00\x01" + b"m\x00\x00\x00\x01a" + b"l\x00\x00\x00\x02" + data * 2 + b"j"
    assert encode(decode(inside)) == b"\x83" + inside
    assert len({value, Opaque(data), Opaque(b"j"), data}) == 3
    assert eval(repr(value)) == pickle.loads(pickle.dumps(value)) == value


def test_an_opaque_is_one_whole_term():
    """Bytes that are not one term cannot be encoded as one."""
    for data in (b"", b"a", b"jj", b"\x83j"):
        with pytest.raises(msgspec.DecodeError):
            Opaque(data)
    assert encode(Opaque.__new__(Opaque)) == b"\x83j"


@pytest.mark.parametrize(("data", "words"), MALFORMED.items())
def test_malformed_terms(data, words):
    """Each is a DecodeError, and nothing is allocated for announced lengths."""
    tracemalloc.start()
    with pytest.raises(msgspec.DecodeError, match=words):
        decode(data)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_containers_share_the_rest_of_the_message():
    """Each of them would fit, but not all of them."""
    inside = b"".join(b"l" + (90_000 - 1000 * n).to_bytes(4, "big") for n in range(50))
    tracemalloc.start()
    with pytest.raises(msgspec.DecodeError, match="truncated"):
        decode(inside + b"j" * 100_000)
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_depth():
    """It is limited in both directions; a cyclic structure ends at the limit."""
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
    """Each contains a copy of its parts, so their total size is limited."""

    def nested(levels: int, size: int) -> bytes:
        binary = b"m" + size.to_bytes(4, "big") + bytes(size)
        return b"l\x00\x00\x00\x01" * levels + binary + b"a\x01" * levels

    assert isinstance(decode(nested(500, 100_000)), Opaque)
    with pytest.raises(msgspec.DecodeError, match="are too large"):
        decode(nested(500, 200_000))


def test_compressed_terms():
    """They must contain as many bytes as announced, at most 64 MiB, and no compressed term."""
    data = encode({"a": "x" * 5000})[1:]
    assert decode(compressed(data)) == {"a": "x" * 5000}
    for broken, words in {
        compressed(data, len(data) + 1): "announced length",
        compressed(data, len(data) - 1): "announced length",
        compressed(data, 0): "announced length",
        compressed(data) + b"x": "announced length",
        compressed(data)[:-1]: "announced length",
        compressed(data, 2**32 - 1): "more than 67108864",
        b"\x83P\x00\x00\x00\x05hello": "does not inflate",
        b"\x83P\x00": "truncated",
        compressed(b""): "truncated",
        compressed(compressed(data)[1:]): "a compressed term in a compressed term",
        compressed(b"\x83" + data): "a compressed term in a compressed term",
    }.items():
        with pytest.raises(msgspec.DecodeError, match=words):
            decode(broken)
