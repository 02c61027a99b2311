"""What a worker's message is, from its first bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge._framing import Frame
from bridge.wire._heads import head
from bridge.wire.codec import FORMATS, by_name
from bridge.wire.messages import Incoming

IDS = st.integers(-(10**17), 10**17)
NAMES = st.sampled_from(["chunk", "status", "log", "logs", "lo", ""])
FORMAT = st.sampled_from(FORMATS)


def head_of(payload: bytes):
    return head(Frame.of(payload))


@given(FORMAT, IDS, st.booleans())
def test_replies(format, number, success):
    """An id of any length is found, unless ETF needs a big integer for it."""
    found = head_of(format.encode({"id": number, "success": success, "result": {"id": 7}}))
    if format.name == "etf" and not -(2**31) <= number < 2**31:
        assert found is None
    else:
        assert found == ("reply", number)


@given(FORMAT, st.integers(-(2**31), 2**31 - 1), NAMES)
def test_events(format, number, name):
    """Only an event whose name is `log`, and no longer, is a log event."""
    found = head_of(format.encode({"id": number, "event": name, "data": {}}))
    assert found == ("log" if name == "log" else "event", number)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize(
    "message",
    [
        {"id": "text", "success": True},
        {"id": None, "success": False},
        {"id": 1.0, "success": True},
        {"success": True, "id": 1},
        {"id": 1, "command": "call_tool"},
        {"id": 1, "successful": True},
        {},
    ],
    ids=repr,
)
def test_other_messages_have_to_be_decoded(format, message):
    """So are messages in an order that the worker does not use."""
    assert head_of(format.encode(message)) is None


@given(FORMAT, st.binary(max_size=40), st.integers(0, 60))
def test_any_bytes(format, tail, length):
    """A message that is cut or continued in any way is recognized as what it decodes to, or not at all."""
    payload = (format.encode({"id": 77, "success": True, "result": None}) + tail)[:length]
    found = head_of(payload)
    decoded = format.decode_or_none(payload, Incoming)
    if found is not None and decoded is not None:
        assert found[1] == decoded.id


@given(st.binary(max_size=60))
def test_garbage(payload):
    """It is never read beyond its end, and gives an id only if it begins like a message."""
    found = head_of(payload)
    assert found is None or payload[:1] in (b"{", b"\x83", b"\xc1") or payload[0] & 0xF0 == 0x80


@given(FORMAT, st.integers(0, 5), st.integers(-100, 100))
def test_multipart_frames(format, count, number):
    """The envelope follows the lengths of the buffers."""
    envelope = format.encode({"id": number, "success": True})
    prefix = b"\xc1\x01\0\0" + count.to_bytes(4) + len(envelope).to_bytes(4) + bytes(4 * count)
    assert head_of(prefix + envelope) == ("reply", number)
    assert head_of(b"\xc1\x01\0\0" + b"\xff" * 8 + envelope) is None


def test_integers_that_no_int64_holds():
    assert head_of(b'{"id":9999999999999999999,"success":true}') is None
    assert head_of(by_name("msgpack").encode({"id": 2**64 - 1, "success": True})) is None
    assert head_of(b'{"id":,"success":true}') is None
    assert head_of(b'{"id":-,"success":true}') is None
