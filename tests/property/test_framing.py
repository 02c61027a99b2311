"""The compiled framing and the one in plain Python read equal frames from any split of any stream."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import threading

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import framing_spec
from bridge import _framing
from bridge.errors import FrameTooLarge, InvalidFrame
from bridge.options import DEFAULT_MAX_FRAME

# Sizes around a slab's (64 KiB) and the limit of the test's readers (100 000 bytes).
sizes = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 150_000)), max_size=12)


def content(size, seed):
    return bytes([seed % 251 + 1]) * size


@contextlib.contextmanager
def pipe_of(chunks):
    """Return the descriptor of a pipe into which a thread writes `chunks`."""
    read_fd, write_fd = os.pipe()

    def write():
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(write_fd, view) :]
        os.close(write_fd)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    try:
        yield read_fd
    finally:
        os.close(read_fd)
        thread.join()


def everything(reader):
    """Return all frames as bytes, and errors by class, up to the end."""
    seen = []
    while True:
        try:
            frame = reader.read()
        except FrameTooLarge as error:
            seen.append((FrameTooLarge, error.details))
            if error.details["length"] > framing_spec.TRUSTED:
                return seen
            continue
        except InvalidFrame:
            return [*seen, InvalidFrame]
        if frame is None:
            return seen
        seen.append(bytes(frame))


def split(stream, cuts):
    places = sorted({min(cut, len(stream)) for cut in cuts})
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


@settings(max_examples=150)
@given(sizes, st.lists(st.integers(0, 300_000), max_size=8), st.integers(0, 6))
def test_any_split_of_a_stream_is_read_alike(sizes, cuts, cut_off):
    """Both readers return the same frames, empty ones, errors for long ones, and truncated end."""
    frames = [content(size, seed) for seed, size in enumerate(sizes)]
    stream = b"".join(framing_spec.HEADER.pack(len(f)) + f for f in frames)
    stream = stream[: max(0, len(stream) - cut_off)]
    seen = []
    for reader in (_framing.Reader, framing_spec.Reader):
        with pipe_of(split(stream, cuts)) as fd:
            seen.append(everything(reader(fd, 100_000)))
    assert seen[0] == seen[1]


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 100_000), max_size=5), max_size=5))
def test_what_the_writers_send_is_the_same_bytes(messages):
    """Frames of several buffers, sent by either writer, are read back whole."""
    messages = [[content(size, i) for i, size in enumerate(parts)] for parts in messages]
    for writer in (_framing.Writer, framing_spec.Writer):
        read_fd, write_fd = os.pipe()
        seen = []
        thread = threading.Thread(target=lambda fd=read_fd, out=seen: out.extend(everything(framing_spec.Reader(fd))))
        thread.start()
        for parts in messages:
            writer(write_fd).send(*parts)
        os.close(write_fd)
        thread.join()
        os.close(read_fd)
        assert seen == [b"".join(parts) for parts in messages]


def test_frames_keep_their_bytes_while_they_are_held():
    """No later read moves or overwrites a frame that is still referenced, or a view of one."""
    contents = [bytes([i % 251]) * (i * 37 % 5000 + 1) for i in range(500)]
    stream = b"".join(framing_spec.HEADER.pack(len(c)) + c for c in contents)
    with pipe_of([stream]) as fd:
        reader = _framing.Reader(fd)
        held = [memoryview(reader.read()) for _ in contents]
    del reader
    assert [bytes(view) for view in held] == contents
    assert all(view.readonly for view in held)


def test_a_frame_is_not_copied():
    """Frames of one read are views of one slab, separated by 4 bytes of header."""
    with pipe_of([b"".join(framing_spec.HEADER.pack(3) + b"abc" for _ in range(2))]) as fd:
        reader = _framing.Reader(fd)
        frames = [reader.read(), reader.read()]
    addresses = [numpy.frombuffer(frame, dtype="u1").ctypes.data for frame in frames]
    assert addresses[1] - addresses[0] == 7


def test_a_long_frame_is_refused_before_it_is_allocated():
    """Its header is enough; no byte of it has to arrive."""
    with pipe_of([framing_spec.HEADER.pack(1 << 30)]) as fd, pytest.raises(FrameTooLarge) as raised:
        _framing.Reader(fd, 1 << 20).read()
    assert raised.value.details == {"length": 1 << 30, "limit": 1 << 20}
    with pipe_of([]) as fd:
        assert _framing.Reader(fd).max_frame == DEFAULT_MAX_FRAME


def test_errors_of_the_descriptor_are_oserrors():
    """A closed descriptor, and a pipe without a reader."""
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with pytest.raises(BrokenPipeError):
        _framing.Writer(write_fd).send(b"x")
    os.close(write_fd)
    with pytest.raises(OSError, match="read from descriptor"):
        _framing.Reader(write_fd).read()


def test_writer_sends_any_number_of_parts_and_only_buffers():
    """There may be more parts than the system accepts at once (1024)."""
    read_fd, write_fd = os.pipe()
    writer = _framing.Writer(write_fd)
    writer.send(*[bytes([n % 256]) for n in range(3000)])
    frame = _framing.Reader(read_fd).read()
    assert bytes(frame) == bytes(n % 256 for n in range(3000))
    with pytest.raises(TypeError):
        writer.send("text")
    os.close(read_fd)
    os.close(write_fd)


def test_frames_from_many_threads_do_not_mix():
    """Each frame is written whole, although each is longer than the pipe."""
    read_fd, write_fd = os.pipe()
    writer = _framing.Writer(write_fd)
    contents = [bytes([i]) * 100_000 for i in range(16)]
    threads = [threading.Thread(target=writer.send, args=(c,)) for c in contents]
    for thread in threads:
        thread.start()
    reader = _framing.Reader(read_fd)
    seen = [bytes(reader.read()) for _ in contents]
    for thread in threads:
        thread.join()
    assert sorted(seen) == contents
    os.close(read_fd)
    os.close(write_fd)


def test_buffer_sizes_are_best_effort():
    """Pipes and sockets hold more afterwards; other descriptors are left alone."""
    read_fd, write_fd = os.pipe()
    _framing.set_buffer_size(write_fd)
    assert fcntl.fcntl(write_fd, fcntl.F_GETPIPE_SZ) >= 1 << 16
    os.close(read_fd)
    os.close(write_fd)
    with open(os.devnull) as null:
        _framing.set_buffer_size(null.fileno())
    one, other = socket.socketpair()
    with one, other:
        before = other.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        _framing.set_buffer_size(one.fileno())
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= before


@given(st.lists(st.tuples(st.integers(70_000, 3_000_000), st.booleans()), max_size=8))
@settings(max_examples=20)
def test_long_frames_that_are_held_are_not_overwritten(frames):
    """Only the memory of unreferenced frames is reused for frames of similar length."""
    contents = [content(size, number) for number, (size, _) in enumerate(frames)]
    with pipe_of([framing_spec.HEADER.pack(len(data)) + data for data in contents]) as fd:
        reader, held = _framing.Reader(fd), []
        for data, (_, is_held) in zip(contents, frames, strict=True):
            frame = reader.read()
            assert bytes(frame) == data
            if is_held:
                held.append((frame, data))
            del frame
    assert all(bytes(frame) == data for frame, data in held)


def test_a_signal_after_a_long_frame_is_handled_at_once():
    """This holds while the frame's memory waits to be reused."""
    read_fd, write_fd = os.pipe()
    reader = _framing.Reader(read_fd)
    writer = threading.Thread(target=_framing.Writer(write_fd).send, args=(bytes(2_000_000),))
    writer.start()
    assert len(reader.read()) == 2_000_000
    writer.join()

    def on_alarm(*_):
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(InterruptedError):
            reader.read()
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(read_fd)
        os.close(write_fd)


buffer_lists = st.lists(st.one_of(st.binary(max_size=200), st.binary(max_size=5000)), max_size=5)


def write_text(text, room):
    """Encode bytes unchanged."""
    room[:] = text


@given(st.binary(min_size=1, max_size=300), buffer_lists)
def test_multipart_frames_are_the_same_in_both(text, buffers):
    """Both write the same bytes and read each other's. Without buffers the compiled one sends a plain frame."""
    frame = framing_spec.joined(text, *buffers)
    outbox = _framing.Outbox()
    outbox.append_multipart(write_text, text, list(buffers))
    assert outbox.payload() == (frame if buffers else text)
    assert framing_spec.parted(frame) == (text, buffers)
    assert compiled_parts(frame) == (text, buffers)


@given(
    st.binary(max_size=100),
    buffer_lists,
    st.integers(0, 30),
    st.sampled_from([0, 1, 5, 64, 255, 65536, 65537, 2**31, 2**32 - 1]),
    st.integers(-70, 70),
)
def test_invalid_multipart_frames_are_refused_by_both(text, buffers, place, number, more):
    """The table has any content, and any number of bytes is cut off or added."""
    frame = bytearray(framing_spec.joined(text, *buffers))
    frame[place : place + 4] = number.to_bytes(4, "big")
    frame = bytes(frame[:more] if more < 0 else frame + bytes(more))
    outcomes = []
    for parts in (framing_spec.parted, compiled_parts):
        try:
            outcomes.append(parts(frame))
        except InvalidFrame:
            outcomes.append(InvalidFrame)
    assert outcomes[0] == outcomes[1]


def compiled_parts(data):
    frame = _framing.Frame.of(data)
    if not _framing.is_multipart(frame):
        raise InvalidFrame("it begins otherwise")
    envelope, buffers = _framing.envelope_of(frame), _framing.buffers_of(frame)
    return bytes(envelope), [bytes(buffer) for buffer in buffers]
