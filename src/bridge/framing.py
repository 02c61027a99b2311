"""The wire of `_framing.pyx` in plain Python: its specification, and the oracle of its tests."""

from __future__ import annotations

import os
import struct
import threading

from bridge.errors import FrameTooLarge, InvalidFrame

HEADER = struct.Struct(">I")
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
