"""Values are counted equally in every format, and any bytes can be counted."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import errors
from bridge._framing import Frame
from bridge.wire import _etf
from bridge.wire._limits import limited

ENCODERS = (msgspec.json.encode, msgspec.msgpack.encode, _etf.encode)
SHORT = 512  # bytes; shorter frames are not looked at
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.sampled_from(['"', "\\", '\\"', "[{", "]}", ",:", "ü" * 300])
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=200)


def count(value) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + count(entry) for entry in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@given(st.lists(VALUES, min_size=1))
def test_the_values_of_any_message_are_counted_exactly(entries):
    message = {"id": 1, "filling": "x" * SHORT, "entries": entries}
    values = count(message)
    for encode in ENCODERS:
        frame = Frame.of(encode(message))
        assert limited(frame, 1 << 30, values) is frame
        if encode is not _etf.encode or len(frame) > values:
            with pytest.raises(errors.FrameTooLarge):
                limited(frame, 1 << 30, values - 1)


@given(
    st.sampled_from([b"{", b"\x82", b"\xdf", b"\x83t", b"\x83P", b""]),
    st.binary(),
    st.integers(0, 300),
)
def test_any_bytes_can_be_counted(beginning, data, limit):
    """The same short bytes are counted repeatedly."""
    for frame in (beginning + data, beginning + data * (1 + SHORT // (len(data) or 1))):
        with contextlib.suppress(errors.FrameTooLarge, RecursionError, msgspec.DecodeError):
            limited(Frame.of(frame), 1 << 20, limit)
