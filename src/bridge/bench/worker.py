"""The process at the other end of the pipe: decode each message with one format, and send it back encoded again.

It uses the framing of this project's workers. The number of messages is announced, because the bytes
of a foreign format can look like anything: a frame `{"payload": name, "calls": n}` in JSON is
answered with `{"ready": true}` or `{"reason": …}`; n messages follow, each answered with its echo;
then this process sends the median time of each step in ns.

    python -m bridge.bench.worker FORMAT [FILE…]
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import msgspec

from bridge._framing import Reader, Writer
from bridge.bench import formats, payloads
from bridge.bench.format import Format

STEPS = ("decode", "read", "build", "encode")


def main(arguments: Sequence[str]) -> None:
    """Serve until the pipe ends."""
    kind = formats.load(arguments[0])
    own = {payload.name: payload for payload in payloads.from_paths(arguments[1:])}
    made: dict[str, Format] = {}
    reader, writer = Reader(os.dup(0)), Writer(os.dup(1))
    os.dup2(2, 1)  # output of a library must not get into the pipe
    while (frame := reader.read()) is not None:
        name, calls = (order := msgspec.json.decode(frame))["payload"], order["calls"]
        try:
            if name not in made:
                made[name] = kind(own.get(name) or payloads.builtin(name))
        except Exception as error:
            writer.send(msgspec.json.encode({"reason": f"{type(error).__name__}: {error}"}))
            continue
        writer.send(msgspec.json.encode({"ready": True}))
        times = _echo(made[name], reader, writer, calls)
        writer.send(msgspec.json.encode({step: statistics.median(t) for step, t in times.items()}))


def _echo(format: Format, reader: Reader, writer: Writer, calls: int) -> dict[str, Any]:
    decode, read, build, encode = format.decode, format.read, format.build, format.encode
    foreign, now = format.foreign, time.perf_counter_ns
    times: dict[str, list[int]] = {step: [] for step in STEPS}
    decodes, reads, builds, encodes = (times[step].append for step in STEPS)
    for _ in range(calls):
        frame = reader.read()
        begin = now()
        native: Any = decode(memoryview(frame))  # type: ignore[arg-type]
        decoded = have = made = now()
        if foreign:
            value = read(native)
            have = now()
            native = build(value)
            made = now()
        data = encode(native)
        end = now()
        writer.send(data)
        decodes(decoded - begin)
        reads(have - decoded)
        builds(made - have)
        encodes(end - made)
    return times


if __name__ == "__main__":
    main(sys.argv[1:])
