"""Pass mutated multipart frames to a worker's dispatcher for some time.

    python tests/fuzz/multipart.py [SECONDS]

Each frame must get one readable reply. Meant for a build with sanitizers, see `etf.py`.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import arrays  # in the folder that the line above adds
import framing_spec
from bridge import Dispatcher, Options
from bridge._framing import Frame, buffers_of, envelope_of, is_multipart
from bridge.wire import _etf
from bridge.wire._frames import format_of
from bridge.wire.codec import ETF, JSON, MSGPACK
from bridge.wire.tensors import TYPES, substitute

NUMBERS = [0, 1, 2, 3, 4, 5, 63, 64, 65, 255, 65_536, 65_537, 2**31, 2**32 - 1]
WAIT = 30.0  # seconds for a reply


def seeds() -> list[bytes]:
    """Return valid frames in every format, with arrays of all types, binaries, and unused buffers."""
    frames = []
    for kind, (size, _) in TYPES.items():
        form = {"$tensor": {"type": kind, "shape": [2, 3], "data": {"$buffer": 1}}}
        data = bytes(range(6 * size))
        for command in ("back", "tensor_back", "anything"):
            request = {"id": 1, "command": command, "args": {"x": form}}
            for format in (JSON, MSGPACK):
                frames.append(framing_spec.joined(format.encode(request), b"", data))
        atoms = _etf.Atom("tensor"), _etf.Atom(kind.rstrip("0123456789") or kind)
        term = (atoms[0], (atoms[1], 8 * size), (2, 3), {"$buffer": 0})
        request = {"id": 1, "command": "back", "args": {"x": term}}
        frames.append(framing_spec.joined(_etf.Encoder(set(atoms)).encode(request), data))
    ones = {"$tensor": {"type": "f32", "shape": [3, 3], "data": {"$buffer": 0}}}
    for format in (JSON, MSGPACK, ETF):
        for command, args in (
            ("matmul", {"a": ones, "b": ones}),
            ("many", {"rows": [ones], "named": {"x": ones}}),
            ("binary", {"data": {"$buffer": 0}, "view": {"$buffer": 1}}),
            ("ping", {}),
        ):
            request = {"id": 1, "command": command, "args": args}
            frames.append(framing_spec.joined(format.encode(request), bytes(36), b"b" * 5000))
        answer = {"id": "w1", "success": True, "result": ones}
        frames.append(framing_spec.joined(format.encode(answer), bytes(36)))
    return frames


def mutated(chance: random.Random, data: bytearray, corpus: list[bytes]) -> None:
    """Mutate mostly the table and the envelope, because buffers may contain any bytes."""
    for _ in range(chance.randrange(1, 3)):
        at = chance.randrange(min(len(data) + 1, 250))
        kind = chance.randrange(7)
        if kind == 0:
            at = 4 * chance.randrange(1, 6)
            data[at : at + 4] = chance.choice(NUMBERS).to_bytes(4, "big")
        elif kind == 1:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            del data[at : at + chance.randrange(70)]
        elif kind == 3:
            data[at:at] = chance.choice(corpus)[chance.randrange(40) :][: chance.randrange(60)]
        elif kind == 4:
            data[at : at + 1] = str(chance.choice((-1, 1, 2, 9, 2**31, 2**64))).encode()
        elif kind == 5:
            del data[chance.randrange(len(data) + 1) :]
        else:
            data += bytes(chance.randrange(130))


def answered(dispatcher: Dispatcher, data: bytes) -> bytes:
    """Return the reply, or nothing for a frame that may be a host's answer."""
    if b"success" not in data:
        return dispatcher.call(data, WAIT)
    try:
        return dispatcher.call(data, 0.01)
    except TimeoutError:
        return b""


def check(reply: bytes) -> None:
    frame = Frame.of(reply)
    if not is_multipart(frame):
        format_of(frame).decode(frame)  # type: ignore[union-attr]
        return
    envelope = envelope_of(frame)
    message: Any = format_of(envelope).decode(envelope)  # type: ignore[union-attr]
    substitute(message["result"], buffers_of(frame))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    dispatcher = Dispatcher(arrays.adapter, Options(max_frame=1 << 20))
    chance, corpus, count, multipart = random.Random(), seeds(), 0, 0
    for data in corpus:
        assert b"handler_error" not in (reply := answered(dispatcher, data)), reply
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        data = bytearray(chance.choice(corpus))
        mutated(chance, data, corpus)
        if not data:
            continue
        reply = answered(dispatcher, bytes(data))
        if reply:
            check(reply)
            assert b"handler_error" not in reply, reply
            assert b"internal" not in reply, reply
            multipart += reply[:1] == b"\xc1"
        count += 1
    print(f"{count} frames, {multipart} of them answered with a multipart frame")


if __name__ == "__main__":
    main()
