"""The Python peer of etf_terms.exs: returns the terms that it receives, in packets on stdin and stdout."""

from __future__ import annotations

import random
import struct
import sys
from typing import Any

from bridge.wire import _etf

encoder = _etf.Encoder()
read_bytes = _etf.Decoder(binaries="bytes")


def text(chance: random.Random, most: int = 12) -> str:
    return "".join(chance.choices("abc XYZ_äß€日😀", k=chance.randrange(most)))


def value(chance: random.Random, depth: int) -> Any:
    """Return a random value that the BEAM encodes to the same bytes: maps have sorted text keys, at most 32."""
    if depth and chance.random() < 0.5:
        items = [value(chance, depth - 1) for _ in range(chance.randrange(6))]
        kind = chance.randrange(3)
        if kind == 0:
            return items
        if kind == 1:
            return tuple(items)
        keys = sorted({text(chance) for _ in items}, key=str.encode)
        return dict(zip(keys, items, strict=False))
    return chance.choice(SCALARS)(chance)


SCALARS: list[Any] = [
    lambda chance: None,
    lambda chance: chance.random() < 0.5,
    lambda chance: chance.randrange(-300, 300),
    lambda chance: chance.choice((-1, 1)) * (2 ** chance.randrange(5000) + chance.randrange(-1, 2)),
    lambda chance: struct.unpack(">d", struct.pack(">d", chance.gauss(0, 1e9)))[0],
    lambda chance: chance.choice([0.0, -0.0, 5e-324, 1.7976931348623157e308]),
    text,
    lambda chance: b"\xff" + chance.randbytes(chance.randrange(9)),
    lambda chance: list(chance.randbytes(chance.randrange(300))),
    lambda chance: _etf.Atom(chance.choice(sorted(encoder.atoms))),
]


def generated(seed: int, count: int) -> list[Any]:
    chance = random.Random(seed)
    return [value(chance, chance.randrange(5)) for _ in range(count)]


def compared(seed: int, back: list[bytes]) -> str:
    for expected, data in zip(generated(seed, len(back)), back, strict=True):
        if repr(_etf.decode(data)) != repr(expected):
            return f"{expected!r} came back as {data!r}"
        if encoder.encode(expected) != data:
            return f"{expected!r} is {encoder.encode(expected)!r} here, {data!r} there"
    return "same"


def answer(question: tuple[Any, ...]) -> Any:
    global encoder
    match question:
        case (b"atoms", names):
            encoder = _etf.Encoder(atoms=[name.decode() for name in names])
            return "known"
        case (b"terms", terms):
            return [encoder.encode(_etf.decode(term)) for term in terms]
        case (b"generate", seed, count):
            return [encoder.encode(value) for value in generated(seed, count)]
        case (b"compare", seed, back):
            return compared(seed, back)


while header := sys.stdin.buffer.read(4):
    frame = sys.stdin.buffer.read(struct.unpack(">I", header)[0])
    reply = _etf.encode(answer(read_bytes.decode(frame)))
    sys.stdout.buffer.write(struct.pack(">I", len(reply)) + reply)
    sys.stdout.buffer.flush()
