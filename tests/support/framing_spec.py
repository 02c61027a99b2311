"""The wire of `_framing.pyx` in plain Python: its specification, and the oracle of its tests."""

from __future__ import annotations

import os
import struct
import threading

from bridge.errors import FrameTooLarge, InvalidFrame

HEADER = struct.Struct(">I")
MULTIPART = struct.Struct(">4sII")  # a multipart frame begins so: how many buffers, the envelope's
MAGIC = b"\xc1\x01\0\0"  # length; then the length of each buffer, 4 bytes, and the envelope
ALIGNMENT = 64  # bytes: from the frame's start, of each buffer
MOST_BUFFERS = 65_536
TRUSTED = 1 << 30  # bytes; a longer announcement is not skipped: the stream is not one of ours


class Reader:
    """Frames from a descriptor. See `_framing.Reader`."""

    def __init__(self, fd: int, max_frame: int = 64 << 20) -> None:
        self.fd = fd
        self.max_frame = max_frame
        self._skipping = 0  # bytes of a refused frame that are still to come

    def read(self) -> bytes | None:
        """The next frame, or None at the end. Raises FrameTooLarge, InvalidFrame, OSError."""
        self._skip()
        header = self._exactly(HEADER.size, at_boundary=True)
        if header is None:
            return None
        (length,) = HEADER.unpack(header)
        if length > self.max_frame:
            if length <= TRUSTED:
                self._skipping = length
            raise FrameTooLarge.announced(length, self.max_frame)
        return self._exactly(length)

    def _exactly(self, size: int, at_boundary: bool = False) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            chunk = os.read(self.fd, size - len(data))
            if not chunk:
                if at_boundary and not data:
                    return None
                raise InvalidFrame("stream ended inside a frame")
            data += chunk
        return bytes(data)

    def _skip(self) -> None:
        while self._skipping:
            chunk = os.read(self.fd, min(self._skipping, 65536))
            if not chunk:
                raise InvalidFrame("stream ended inside a frame")
            self._skipping -= len(chunk)


class Writer:
    """Whole frames to a descriptor, from any thread. See `_framing.Writer`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._lock = threading.Lock()

    def send(self, *parts: bytes) -> None:
        """Send the buffers `parts` as one frame."""
        payload = b"".join(parts)
        frame = memoryview(HEADER.pack(len(payload)) + payload)
        with self._lock:
            while frame:
                frame = frame[os.write(self.fd, frame) :]


def joined(envelope: bytes, *buffers: bytes) -> bytes:
    """A multipart frame."""
    frame = MULTIPART.pack(MAGIC, len(buffers), len(envelope))
    frame += b"".join(HEADER.pack(len(buffer)) for buffer in buffers) + envelope
    for buffer in buffers:
        frame += bytes(-len(frame) % ALIGNMENT) + buffer
    return frame


def parted(frame: bytes) -> tuple[bytes, list[bytes]]:
    """The envelope of a multipart frame, and its buffers. Raises InvalidFrame."""
    if len(frame) < MULTIPART.size or not frame.startswith(MAGIC):
        raise InvalidFrame("no multipart frame")
    _, count, length = MULTIPART.unpack_from(frame)
    begin = MULTIPART.size + HEADER.size * count
    if count > MOST_BUFFERS or begin + length > len(frame):
        raise InvalidFrame("the envelope is longer than the frame")
    end, buffers = begin + length, []
    for (size,) in HEADER.iter_unpack(frame[MULTIPART.size : begin]):
        start = end + -end % ALIGNMENT
        end = start + size
        if end > len(frame):
            raise InvalidFrame("a buffer ends behind the frame")
        buffers.append(frame[start:end])
    if end != len(frame):
        raise InvalidFrame("there are bytes behind the last buffer")
    return frame[begin : begin + length], buffers
