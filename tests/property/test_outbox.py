"""Outboxes hold frames of any lengths, whatever was encoded before or meanwhile."""

from __future__ import annotations

import os
import struct
import threading

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge._framing import Outbox, Writer
from bridge.wire.codec import FORMATS

# Around the memory that outboxes begin with (512 bytes), and the length from which messages are not copied (16 KiB).
lengths = st.lists(st.sampled_from([0, 1, 500, 512, 513, 700, 16_384, 16_385, 70_000, 1 << 20]), max_size=8)


def write(text, room):
    """Encode bytes unchanged."""
    room[:] = text


def texts(lengths):
    return [bytes([index + 1]) * length for index, length in enumerate(lengths)]


def frame(payload):
    return struct.pack(">I", len(payload)) + payload


def sent(outbox):
    """Return what a writer sends of `outbox`."""
    read_fd, write_fd = os.pipe()
    got = []

    def read():
        with open(read_fd, "rb") as source:
            got.append(source.read())

    reader = threading.Thread(target=read)
    reader.start()
    Writer(write_fd).flush(outbox)
    os.close(write_fd)
    reader.join()
    return got[0]


@settings(max_examples=60)
@given(lengths)
def test_frames_are_sent_in_order_with_their_bytes(lengths):
    """Also after the outbox has been emptied."""
    outbox = Outbox()
    for messages in (texts(lengths), texts(lengths[::-1])):
        for message in messages:
            outbox.append(write, message)
        expected = b"".join(map(frame, messages))
        assert len(outbox) == len(expected)
        assert b"".join(outbox.parts()) == expected
        assert sent(outbox) == expected
        assert len(outbox) == 0


@settings(max_examples=60)
@given(lengths)
def test_messages_encode_alike_whatever_was_encoded_before(lengths):
    """Encoders reuse memory that may be longer or shorter than the message."""
    for format in FORMATS:
        for length in lengths:
            outbox, message = Outbox(), {"text": "x" * length, "items": [1.5, None, True, "ü" * (length % 7)]}
            outbox.append(format.encode_into, message)
            assert outbox.payload() == format.encode(message)


def test_a_message_may_be_encoded_while_another_one_is():
    """As by a hook of an encoder that sends something itself."""
    outer, inner = Outbox(), Outbox()

    def hook(value):
        inner.append(encoder.encode_into, ["inner" * 10])
        return "hooked"

    encoder = msgspec.json.Encoder(enc_hook=hook)
    for _ in range(3):
        outer.append(encoder.encode_into, ["x" * 600, object(), "y"])
    inner_frame, outer_frame = (msgspec.json.encode(v) for v in (["inner" * 10], ["x" * 600, "hooked", "y"]))
    assert b"".join(outer.parts()) == 3 * frame(outer_frame)
    assert b"".join(inner.parts()) == 3 * frame(inner_frame)


def test_an_encoder_that_fails_leaves_the_outbox_as_it_was():
    outbox = Outbox()
    outbox.append(msgspec.json.Encoder().encode_into, 1)
    with pytest.raises(TypeError):
        outbox.append(msgspec.json.Encoder().encode_into, ["x" * 5000, object()])
    outbox.append(msgspec.json.Encoder().encode_into, 2)
    assert b"".join(outbox.parts()) == frame(b"1") + frame(b"2")
