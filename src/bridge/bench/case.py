"""One format with one payload: does it carry it, and what do encoding and decoding cost in time, bytes and memory?"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import time
from collections.abc import Callable
from typing import Any

import msgspec

from bridge.bench.format import Format, Unsuitable, reason_of
from bridge.bench.payloads import Payload
from bridge.bench.schema import difference
from bridge.bench.timing import timed, timed_once

HELD = 4 << 20  # bytes of messages that are kept to measure the memory of one
MOST_HELD = 20_000  # repetitions of all messages
LONGEST = 0.1  # seconds that the measurement of memory may take
CHUNK = 64 << 10  # bytes of messages with new text that are made at once, so that they stay in a cache
MOST_IN_CHUNK = 256  # messages

Times = dict[str, float]


class Case:
    """One format with one payload. Errors of the library pass through."""

    def __init__(self, kind: type[Format], payload: Payload) -> None:
        self.name = payload.name
        self.values = payload.messages
        self.format = kind(payload)
        self.natives = [self.format.build(value) for value in self.values]
        self.encoded = [bytes(self.format.encode(native)) for native in self.natives]
        self.type = payload.type
        self.pickled = None if payload.ascii else [pickle.dumps(value) for value in self.values]
        self.decode_typed: Callable[[Any], Any] | None = None

    def value(self, index: int) -> Any:
        """Return message number `index`, modulo the number of messages, with new text objects.

        CPython caches the UTF-8 of a str when a library asks for it, and then copies the cached
        bytes, which is faster. New objects measure what a program pays that has just made or read
        the text. ASCII text needs no cache, so its objects are reused.
        """
        index %= len(self.values)
        return self.values[index] if self.pickled is None else pickle.loads(self.pickled[index])

    def native(self, index: int) -> Any:
        """Return the native of message number `index`, with new text objects if it holds Python's str."""
        if self.pickled is None or self.format.foreign:
            return self.natives[index % len(self.natives)]
        return self.format.build(self.value(index))

    def check(self) -> None:
        """Raise Unsuitable if a decoded message differs from the original."""
        for value, data in zip(self.values, self.encoded, strict=True):
            if not data:
                raise Unsuitable("encodes it as no bytes at all, and an empty frame is a heartbeat here")
            back = self.format.read(self.format.decode(memoryview(data)))
            if found := difference(value, back):
                raise Unsuitable(f"comes back changed: {found}")

    def check_typed(self) -> str | None:
        """Return None if messages can be decoded to a declared type, else the reason why not.

        The library does that itself, or msgspec.convert does it after decoding.
        """
        if self.format.typed:
            return None  # `decode` does that
        decode, read, kind, convert = (
            self.format.decode,
            self.format.read,
            self.type,
            msgspec.convert,
        )
        try:
            for value, data in zip(self.values, self.encoded, strict=True):
                made = convert(read(decode(data)), kind)
                back = msgspec.to_builtins(made, builtin_types=(bytes,))
                if found := difference(value, back):
                    return f"comes back changed: {found}"
        except Exception as error:
            return reason_of(error)
        self.decode_typed = lambda data: convert(read(decode(data)), kind)
        return None

    def sizes(self) -> dict[str, float]:
        """Return the mean bytes of a message and, if zstandard is installed, after zstd (level 3) as `zstd`."""
        count = len(self.encoded)
        sizes = {"bytes": sum(map(len, self.encoded)) / count}
        with contextlib.suppress(ModuleNotFoundError):
            import zstandard

            compress = zstandard.ZstdCompressor(level=3).compress
            sizes["zstd"] = sum(len(compress(data)) for data in self.encoded) / count
        return sizes

    def memory(self) -> float | None:
        """Return the peak of resident memory that encoding and decoding one message takes, in bytes.

        Measured as the growth of a forked process that keeps everything. None if that process died.
        """
        total = sum(map(len, self.encoded))
        repeats = max(1, min(MOST_HELD, HELD // total))
        gc.collect()
        readable, writable = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                os.write(writable, str(self._growth(repeats) / len(self.values)).encode())
            finally:
                os._exit(0)
        os.close(writable)
        with os.fdopen(readable) as answer:
            text = answer.read()
        os.waitpid(pid, 0)
        return float(text) if text else None

    def _growth(self, repeats: int) -> float:
        # Run once before: the first use of the library in a fork maps its code again.
        started = time.monotonic()
        kept = [self._kept(native) for native in self.natives]
        took = time.monotonic() - started
        repeats = max(1, min(repeats, int(LONGEST / took)))
        before = _resident("VmRSS")
        for _ in range(repeats):
            kept += [self._kept(native) for native in self.natives]
        return max(0, _resident("VmHWM") - before) / repeats

    def _kept(self, native: Any) -> Any:
        data = self.format.encode(native)
        value = self.format.decode(memoryview(data))
        return data, value, self.format.read(value) if self.format.foreign else None

    def times(self, budget: float) -> Times:
        """Return the ns that a call of each step takes, measured alone. budget: seconds for each step."""
        format = self.format
        received = [memoryview(data) for data in self.encoded]
        times = {
            "encode": self._timed(format.encode, self.natives, self.native, budget),
            "decode": timed(format.decode, received, budget),
        }
        if format.foreign:
            decoded = [format.decode(data) for data in received]
            times["build"] = self._timed(format.build, self.values, self.value, budget)
            times["read"] = timed(format.read, decoded, budget)
        if self.decode_typed is not None:
            times["typed"] = timed(self.decode_typed, received, budget)
        elif format.typed:
            times["typed"] = times["decode"]
        return times

    def _timed(
        self,
        call: Callable[[Any], Any],
        inputs: list[Any],
        make: Callable[[int], Any],
        budget: float,
    ) -> float:
        if self.pickled is None:
            return timed(call, inputs, budget)
        count = len(inputs)
        size = max(1, min(MOST_IN_CHUNK, CHUNK * count // sum(map(len, self.encoded))))
        return timed_once(call, make, count * -(-size // count), size, budget)


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))
