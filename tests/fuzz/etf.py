"""Pass random bytes to _etf for some time, made by atheris if it is installed, else by mutation.

    python tests/fuzz/etf.py [SECONDS]

Meant for a build with -fsanitize=address,undefined -fno-sanitize-recover=undefined in CFLAGS, where
a read out of bounds ends the process. Such a module needs gcc's libasan.so and libubsan.so in
LD_PRELOAD, PYTHONMALLOC=malloc, and ASAN_OPTIONS=detect_leaks=0.
"""

from __future__ import annotations

import random
import sys
import time
from typing import Any

import msgspec

from bridge.wire import _etf
from bridge.wire.messages import Envelope, Incoming

ATOMS = ["ok", "error", "a"]


class Nested(msgspec.Struct):
    raw: msgspec.Raw = msgspec.Raw()
    data: bytes = b""
    more: list[Nested] = []
    named: dict[str, Nested] = {}


UNTYPED = [_etf.Decoder(binaries=mode) for mode in ("str", "bytes", "view", "replace")]
TYPED = [_etf.Decoder(type) for type in (Envelope, Incoming, Nested, dict[str, Any], msgspec.Raw)]
ENCODER = _etf.Encoder(atoms=ATOMS)
TAGS = bytes([70, 77, 80, *range(88, 91), *range(97, 121), 131])


def feed(data: bytes) -> None:
    """Decode `data` in every way, encode the value, and check that this decodes to an equal value."""
    for decoder in (*UNTYPED, *TYPED):
        try:
            value = decoder.decode(data)
        except (msgspec.DecodeError, RecursionError):
            continue
        if decoder is UNTYPED[0]:
            written = ENCODER.encode(value)
            assert ENCODER.encode(decoder.decode(written)) == written
    _etf.find_id(data)


def seeds() -> list[bytes]:
    pid = b"X" + b"w\x01n" + bytes(12)
    opaque = [
        pid,
        b"M\0\0\0\1\3\xe0",
        b"l\0\0\0\1a\1a\2",
        b"t\0\0\0\1ja\1",
        b"Z\0\1w\1n" + bytes(8),
    ]
    values = [
        {"id": 1, "command": "ping", "args": {"x": [1.5, -1, 2**70, 2**3000]}, "timeout_ms": 5},
        [_etf.Atom(name) for name in (*ATOMS, "other", "ü" * 130)],
        [_etf.Opaque(data) for data in opaque],
        ("text" * 20, b"\xff", [1, 2, 3], (), [], {}, None, True, "ü" * 20),
        {"raw": "x" * 2000, "data": "d", "more": [{"raw": 1}], "named": {"n": {"raw": [1]}}},
        {"id": "x", "success": True, "result": {(1, 2): 3}, "timing": {"run_us": 1.0}},
    ]
    old = [
        b"\x83d\0\2ok",
        b"\x83c" + b"1.5".ljust(31, b"\0"),
        b"\x83P\0\0\0\1x\x9cK\4\0\0k\0k",
        b"\x83u\0\0\0\0g" + b"s\1n" + bytes(9) + b"w\1ma\1a\2",
    ]
    return [*map(ENCODER.encode, values), *old]


def mutated(chance: random.Random, data: bytearray, others: list[bytes]) -> None:
    for _ in range(chance.randrange(1, 6)):
        at = chance.randrange(len(data) + 1)
        kind = chance.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([chance.choice(TAGS)])
        elif kind == 1:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif kind == 2:
            data[at : at + 4] = chance.choice([0, 1, 2, 255, 65535, 2**31, 2**32 - 1]).to_bytes(4)
        elif kind == 3:
            del data[at : at + chance.randrange(9)]
        elif kind == 4:
            data[at:at] = chance.choice(others)[chance.randrange(9) :][: chance.randrange(40)]
        else:
            data[at:at] = bytes(chance.choices(TAGS, k=chance.randrange(8)))


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    try:
        import atheris
    except ImportError:
        chance, corpus, count = random.Random(), seeds(), 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            data = bytearray(chance.choice(corpus))
            mutated(chance, data, corpus)
            feed(bytes(data))
            count += 1
        print(f"{count} inputs")
    else:
        atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}"], feed)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
