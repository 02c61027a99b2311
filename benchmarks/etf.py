"""Compare ETF with msgspec's MessagePack: microseconds to encode and to decode the same values.

Contenders take turns, so that a busy moment of the machine affects all of them; figures are medians.
erlang_py, which is ETF in plain Python, is measured if it is installed; the bridge does not need it.

    python benchmarks/etf.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import msgspec

from bridge.wire import _etf
from bridge.wire.codec import ETF, MSGPACK
from bridge.wire.messages import Reply

try:
    import erlang
except ImportError:
    erlang = None

random.seed(5)
SMALL_MAP = {"id": 7, "command": "ping", "stream": False, "score": 0.25, "name": "Danube"}
REQUEST = {"id": 7, "command": "execute_program", "args": {"inputs": {"question": "Where?"}}}
VALUES = {
    "small map": SMALL_MAP,
    "100 rows": [{**SMALL_MAP, "id": index, "name": f"row {index}"} for index in range(100)],
    "768 floats": [random.random() for _ in range(768)],
    "4096 ints": [random.randrange(-(2**40), 2**40) for _ in range(4096)],
    "4096 small ints": [random.randrange(1000) for _ in range(4096)],
    "text of 8 KiB": {"passage": "Wien an der schönen blauen Donau. " * 240},
}

Cases = dict[str, Callable[[], Any]]


def cases() -> dict[str, Cases]:
    """Return the calls to compare by row and contender. The first contender is the baseline."""
    rows: dict[str, Cases] = {}
    for name, value in VALUES.items():
        packed, term = msgspec.msgpack.encode(value), _etf.encode(value)
        pack, unpack = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode
        encode, decode = _etf.Encoder().encode, _etf.Decoder().decode
        rows[f"encode {name}"] = {
            "msgpack": lambda v=value, f=pack: f(v),
            "etf": lambda v=value, f=encode: f(v),
        }
        rows[f"decode {name}"] = {
            "msgpack": lambda v=packed, f=unpack: f(v),
            "etf": lambda v=term, f=decode: f(v),
        }
        if erlang is not None:
            rows[f"encode {name}"]["erlang_py"] = lambda v=value: erlang.term_to_binary(v)
            rows[f"decode {name}"]["erlang_py"] = lambda v=term: erlang.binary_to_term(v)
    packed, term = msgspec.msgpack.encode(REQUEST), _etf.encode(REQUEST)
    rows["decode a request"] = {
        "msgpack": lambda: MSGPACK.decode_envelope(packed),
        "etf": lambda: ETF.decode_envelope(term),
    }
    reply, buffer = Reply(7, True, SMALL_MAP, "2026-01-01T00:00:00.000Z"), bytearray(512)
    rows["encode a reply"] = {
        "msgpack": lambda: MSGPACK.encode_into(reply, buffer),
        "etf": lambda: ETF.encode_into(reply, buffer),
    }
    return rows


def measure(contenders: Cases, rounds: int, seconds: float) -> dict[str, float]:
    """Return the median microseconds of each contender, without those that fail on the value."""
    samples: dict[str, list[float]] = {}
    repeats = {}
    for name, call in contenders.items():
        try:
            call()
        except Exception:
            continue
        began = time.perf_counter()
        call()
        repeats[name] = max(1, int(seconds / max(time.perf_counter() - began, 1e-7)))
        samples[name] = []
    for _ in range(rounds):
        for name, times in samples.items():
            call, count = contenders[name], repeats[name]
            began = time.perf_counter()
            for _ in range(count):
                call()
            times.append((time.perf_counter() - began) / count * 1e6)
    return {name: statistics.median(times) for name, times in samples.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    rounds, seconds = (7, 0.002) if arguments.quick else (31, 0.005)
    results = {row: measure(contenders, rounds, seconds) for row, contenders in cases().items()}
    if arguments.json:
        json.dump({"python": sys.version.split()[0], "us": results}, sys.stdout, indent=2)
        return
    for row, times in results.items():
        figures = "  ".join(f"{name} {microseconds:9.2f}" for name, microseconds in times.items())
        print(f"{row:24} {figures}  ratio {times['etf'] / times['msgpack']:.2f}")


if __name__ == "__main__":
    main()
