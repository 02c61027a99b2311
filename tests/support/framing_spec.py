"""The framing of `_framing.pyx` in plain Python: a specification, which tests compare the compiled module with."""

from __future__ import annotations

import os
import struct
import threading

from bridge.errors import FrameTooLarge, InvalidFrame

HEADER = struct.Struct(">I")
# A multipart frame: the magic number, the number of buffers, the length of the envelope, the lengths of the
# buffers in 4 bytes each, the envelope, the buffers.
MULTIPART = struct.Struct(">4sII")
MAGIC = b"\xc1\x01\0\0"
ALIGNMENT = 64  # bytes, of each buffer from the start of the payload
MOST_BUFFERS = 65_536
TRUSTED = 1 << 30  # bytes; a longer announcement means that the stream does not consist of frames


class Reader:
    """Reads frames from a descriptor. See `_framing.Reader`."""

    def __init__(self, fd: int, max_frame: int = 64 << 20) -> None:
        self.fd = fd
        self.max_frame = max_frame
        self._skipping = 0  # bytes of a refused frame that have not arrived yet

    def read(self) -> bytes | None:
        """Return the next frame, or None at the end. Raises FrameTooLarge, InvalidFrame, OSError."""
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
    """Writes whole frames to a descriptor, from any thread. See `_framing.Writer`."""

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
    """Return a multipart payload."""
    frame = MULTIPART.pack(MAGIC, len(buffers), len(envelope))
    frame += b"".join(HEADER.pack(len(buffer)) for buffer in buffers) + envelope
    for buffer in buffers:
        frame += bytes(-len(frame) % ALIGNMENT) + buffer
    return frame


def parted(frame: bytes) -> tuple[bytes, list[bytes]]:
    """Return the envelope of a multipart payload, and its buffers. Raises InvalidFrame."""
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
        raise InvalidFrame("there are bytes after the last buffer")
    return frame[begin : begin + length], buffers
