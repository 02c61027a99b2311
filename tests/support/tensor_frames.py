"""Multipart frames with arrays and binaries, valid and invalid, for tests."""

from __future__ import annotations

import json
import struct

import numpy


def frame_of(envelope, *buffers, **wrong):
    """Return a multipart payload. wrong: parts to write instead of the right ones."""
    text = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    count, length = wrong.get("count", len(buffers)), wrong.get("length", len(text))
    lengths = wrong.get("lengths", [len(buffer) for buffer in buffers])
    frame = wrong.get("magic", b"\xc1\x01\0\0") + struct.pack(">II", count, length)
    frame += struct.pack(f">{len(lengths)}I", *lengths) + text
    for buffer in buffers:
        frame += bytes(-len(frame) % 64) + bytes(buffer)
    return frame + wrong.get("tail", b"")


def request(command, args, **more):
    return {"id": 1, "command": command, "args": args, **more}


def tensor(kind, shape, data):
    return {"$tensor": {"type": kind, "shape": shape, "data": data}}


FORMATS = ("json", "msgpack", "etf")


F3, F2, D2, D3 = numpy.zeros(3, "f4"), numpy.zeros(2, "f4"), numpy.zeros(2), numpy.zeros(3)
