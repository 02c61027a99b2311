"""How bytes of frames are put together for calls of Ray."""

from __future__ import annotations

import socket
import threading

import pytest

from bridge.ray.tunnel import CHUNK, LEAST_STORED, MOST_STORED, Lengths, pieces


def frame(size):
    return size.to_bytes(4, "big") + bytes(size)


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_the_rest_of_a_frame_is_known_wherever_the_bytes_are_split(step):
    """Also within a length, of which nothing is known before its four bytes, and for empty frames."""
    expected = [left for size in (10, 0, 100, 5) for left in (0, 0, 0, *range(size, -1, -1))]
    stream, lengths = frame(10) + frame(0) + frame(100) + frame(5), Lengths()
    for start in range(0, len(stream), step):
        data = stream[start : start + step]
        assert lengths.left_after(data) == expected[start + len(data) - 1]


@pytest.mark.parametrize("size", [0, CHUNK, LEAST_STORED + CHUNK, 2 * MOST_STORED + CHUNK])
def test_nothing_is_lost_and_long_frames_take_few_pieces(size):
    """The first piece is a short one, which Ray sends with the call."""
    stream = frame(3) + frame(size) + frame(3)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=lambda: (ours.sendall(stream), ours.shutdown(socket.SHUT_WR)))
        sender.start()
        found = list(pieces(theirs))
        sender.join()
    assert b"".join(found) == stream
    assert all(len(piece) <= CHUNK or LEAST_STORED <= len(piece) <= MOST_STORED for piece in found)
    if size > MOST_STORED:
        assert MOST_STORED in map(len, found)


def test_a_stream_that_ends_within_a_long_frame_is_passed_on_as_it_is():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        stream = frame(LEAST_STORED * 3)[: LEAST_STORED * 2]
        sender = threading.Thread(target=lambda: (ours.sendall(stream), ours.shutdown(socket.SHUT_WR)))
        sender.start()
        assert b"".join(pieces(theirs)) == stream
        sender.join()
