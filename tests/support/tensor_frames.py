"""Arrays and binaries on the wire: in every format, apart or not, and those that lie."""

from __future__ import annotations

import json
import struct

import numpy


def frame_of(envelope, *buffers, **lies):
    """A multipart frame as the protocol states it; lies: what to write in place of the truth."""
    text = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    count, length = lies.get("count", len(buffers)), lies.get("length", len(text))
    lengths = lies.get("lengths", [len(buffer) for buffer in buffers])
    frame = lies.get("magic", b"\xc1\x01\0\0") + struct.pack(">II", count, length)
    frame += struct.pack(f">{len(lengths)}I", *lengths) + text
    for buffer in buffers:
        frame += bytes(-len(frame) % 64) + bytes(buffer)
    return frame + lies.get("tail", b"")


def request(command, args, **more):
    return {"id": 1, "command": command, "args": args, **more}


def tensor(kind, shape, data):
    return {"$tensor": {"type": kind, "shape": shape, "data": data}}


FORMATS = ("json", "msgpack", "etf")


F3, F2, D2, D3 = numpy.zeros(3, "f4"), numpy.zeros(2, "f4"), numpy.zeros(2), numpy.zeros(3)
