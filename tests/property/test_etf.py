"""Laws of ETF: values survive a round trip, and no bytes cause a crash or a leak."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge import Atom, Opaque
from bridge.wire import _etf
from bridge.wire._etf import decode, encode
from bridge.wire.messages import Envelope, Incoming

OPAQUE = [
    Opaque(b"X" + b"w\x01n" + bytes(12)),
    Opaque(b"M\x00\x00\x00\x01\x03\xe0"),
    Opaque(b"l\x00\x00\x00\x01a\x01a\x02"),
]
keys = st.text(max_size=40) | st.integers(-(2**70), 2**70) | st.binary(max_size=5)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.binary(max_size=20).filter(lambda data: not is_text(data))
    | st.sampled_from(OPAQUE)
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(st.integers(0, 300), max_size=5)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys.filter(lambda key: not is_text(key)), inner, max_size=4)
    ),
    max_leaves=12,
)
MODES = ("str", "bytes", "view", "replace")


class Nested(msgspec.Struct):
    raw: msgspec.Raw = msgspec.Raw()
    data: bytes = b""
    more: list[Nested] = []
    named: dict[str, Nested] = {}


TYPED = [_etf.Decoder(type) for type in (Envelope, Incoming, Nested, dict[str, Any], list[int])]
UNTYPED = [_etf.Decoder(binaries=mode) for mode in MODES]


def is_text(value: Any) -> bool:
    """Return whether bytes are decoded to str."""
    try:
        return isinstance(value, bytes) and value.decode() is not None
    except UnicodeDecodeError:
        return False


def attempt(data: bytes) -> None:
    """Decode in every way; only the documented exceptions may be raised."""
    for decoder in (*TYPED, *UNTYPED):
        try:
            value = decoder.decode(data)
        except (msgspec.DecodeError, RecursionError):
            continue
        if decoder in UNTYPED:
            encode(value)
    assert isinstance(_etf.find_id(data), int | str | None)


@given(values)
def test_values_come_back(value):
    """They are equal and of the same types."""
    assert repr(decode(encode(value))) == repr(value)


@given(values)
def test_bytes_come_back(value):
    """Encoding a decoded value gives the same bytes."""
    data = encode(value)
    assert encode(decode(data)) == data
    assert encode(Opaque(data[1:])) == data
    assert encode(msgspec.Raw(data)) == data


@given(st.text(max_size=300))
def test_atoms_come_back(name):
    """Atoms that are values remain atoms."""
    data = _etf.Encoder(atoms=[name]).encode(Atom(name))
    assert decode(data) == {"true": True, "false": False, "nil": None}.get(name, name)


@settings(max_examples=1000)
@given(st.binary(max_size=200))
def test_any_bytes(data):
    """Any bytes, with and without a version byte."""
    attempt(data)
    attempt(b"\x83" + data)


TAGS = bytes([70, 77, 80, *range(88, 91), *range(97, 122), 131])


@settings(max_examples=2000)
@given(st.lists(st.sampled_from(TAGS) | st.integers(0, 3), max_size=60).map(bytes))
def test_bytes_that_are_mostly_tags(data):
    """They reach more branches than random bytes."""
    attempt(data)


@settings(max_examples=100)
@given(values, st.integers(0, 255))
def test_every_prefix_and_every_change(value, byte):
    """Valid messages are cut off anywhere, and changed in any one byte."""
    data = encode({"id": 1, "command": "x", "args": value})
    for at in range(len(data)):
        with pytest.raises(msgspec.DecodeError, match="truncated"):
            decode(data[:at])
        attempt(data[:at])
        attempt(data[:at] + bytes([byte]) + data[at + 1 :])


def test_decoding_leaks_nothing():
    """References and memory are unchanged after thousands of messages, including broken ones."""
    chance = random.Random(3)
    watched: list[Any] = [None, True, Atom, Opaque, msgspec.Raw, Envelope, (), ""]
    seed = encode({"id": 1, "command": "x", "args": [1.5, (2, {"k": b"\xff"}), 2**70, *OPAQUE]})

    def work() -> None:
        for _ in range(1000):
            data = bytearray(seed)
            for _ in range(chance.randrange(3)):
                data[chance.randrange(1, len(data))] = chance.choice(TAGS)
            attempt(bytes(data))
            for unfit in ([object()], {"a": float("nan")}, ["\ud800"]):
                with pytest.raises((TypeError, ValueError)):
                    encode(unfit)

    work()
    gc.collect()
    tracemalloc.start()
    before = [sys.getrefcount(each) for each in watched]
    memory = tracemalloc.get_traced_memory()[0]
    work()
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()
    after = [sys.getrefcount(each) for each in watched]
    assert grown < 100_000
    assert all(abs(late - early) < 50 for early, late in zip(before, after, strict=True))
