"""The process that has one format loaded, and no other: it checks it, times it, and talks to a
worker of the same format. The parent says what to do next, so that all formats take turns.

    python -m bridge.bench.contender FORMAT [FILE…]

Orders and answers are JSON, a line each: `{"do": "prepare", "payload": name}` is answered with
`{"bytes", "zstd", "memory", "typed_reason"}` or `{"reason"}`, `{"do": "round", "payload": name,
"budget": seconds}` with `{"times": {step: ns}}` or `{"reason"}`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

import msgspec

from bridge._framing import Reader, Writer, set_pipe_size
from bridge.bench import formats, payloads
from bridge.bench.schema import difference

BATCHES = 5  # a round's figure is the median of so many, each the mean over its calls
HELD = 4 << 20  # bytes of messages that are held to see what one takes of memory
MOST_HELD = 20_000
LONGEST = 0.1  # seconds of that
CHUNK = 64 << 10  # bytes of messages with new text that are made at once, to stay in a cache
MOST_IN_CHUNK = 256
PYTHON = [sys.executable, "-P", "-m"]

Times = dict[str, float]


class Contender:
    """A format, made for the payloads that it is asked about, and its worker."""

    def __init__(self, format: str, paths: Sequence[str]) -> None:
        self.kind = formats.load(format)
        self.own = {payload.name: payload for payload in payloads.from_paths(paths)}
        self.cases: dict[str, Case] = {}
        self.command = [*PYTHON, "bridge.bench.worker", format, *paths]
        self.pipe: Pipe | None = None

    def open(self) -> Pipe:
        if self.kind.through_bridge:
            return BridgePipe([*PYTHON, "bridge", "worker", "--adapter", "echo"])
        return Pipe(self.command)

    def prepare(self, name: str, memory: bool) -> dict[str, Any]:
        """memory: measure that too, before anything has been timed and warmed the heap."""
        payload = self.own.get(name) or payloads.builtin(name)
        case = self.cases[name] = Case(self.kind, payload)
        if self.pipe is None:
            self.pipe = self.open()
        case.check()
        facts: dict[str, Any] = {"memory": case.memory() if memory else None, **case.sizes()}
        if not self.kind.through_bridge:
            facts["typed_reason"] = case.check_typed()
        self.pipe.trips(case, len(case.values), check=True)
        return facts

    def round(self, name: str, budget: float) -> dict[str, Any]:
        case = self.cases[name]
        gc.collect()
        times = {} if self.kind.through_bridge else case.times(budget)
        if self.pipe is None:
            self.pipe = self.open()
        guess = sum(self.pipe.trips(case, 10).values()) / 1e9
        calls = max(15, min(20_000, int(2 * budget / guess)))
        trip = self.pipe.trips(case, calls)
        return {"times": times | {f"trip_{step}": ns for step, ns in trip.items()}}


class Case:
    """One format and one payload. Whatever the library raises passes through."""

    def __init__(self, kind: type[formats.Format], payload: payloads.Payload) -> None:
        self.name = payload.name
        self.values = payload.messages
        self.format = kind(payload)
        self.natives = [self.format.build(value) for value in self.values]
        self.encoded = [bytes(self.format.encode(native)) for native in self.natives]
        self.type = payload.type
        self.pickled = None if payload.ascii else [pickle.dumps(value) for value in self.values]
        self.decode_typed: Callable[[Any], Any] | None = None

    def value(self, index: int) -> Any:
        """Message number `index`, counted round and round.

        CPython keeps the UTF-8 of a str once a library has asked for it, and the next one that
        asks copies it. So text outside ASCII is made anew, as a program has it that has just made
        or read it. ASCII is its own UTF-8: the same objects serve.
        """
        index %= len(self.values)
        return self.values[index] if self.pickled is None else pickle.loads(self.pickled[index])

    def native(self, index: int) -> Any:
        """Of that message; as new as `value` is, where it holds Python's text at all."""
        if self.pickled is None or self.format.foreign:
            return self.natives[index % len(self.natives)]
        return self.format.build(self.value(index))

    def check(self) -> None:
        """Raise Unsuitable if a message does not come back as it was."""
        for value, data in zip(self.values, self.encoded, strict=True):
            if not data:
                raise formats.Unsuitable("makes no bytes of it: an empty frame is a heartbeat here")
            back = self.format.read(self.format.decode(memoryview(data)))
            if found := difference(value, back):
                raise formats.Unsuitable(f"comes back changed: {found}")

    def check_typed(self) -> str | None:
        """Find the way to objects of a declared type, by the library itself or by msgspec.convert
        behind it. Why there is none, if so."""
        if self.format.typed:
            return None  # that is its `decode`
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
        """Bytes of a message, as it is and, where zstandard is installed, after zstd (level 3),
        each on its own."""
        count = len(self.encoded)
        sizes = {"bytes": sum(map(len, self.encoded)) / count}
        with contextlib.suppress(ModuleNotFoundError):
            import zstandard

            compress = zstandard.ZstdCompressor(level=3).compress
            sizes["zstd"] = sum(len(compress(data)) for data in self.encoded) / count
        return sizes

    def memory(self) -> float | None:
        """Bytes of resident memory that one message takes at the most while it is encoded and
        decoded, everything kept: the growth of a forked process's peak. None: it did not say."""
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
        # Once before: a fork's first use of the library maps its code anew.
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
        """ns a call of each step by itself. budget: seconds for each step."""
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


class Pipe:
    """A worker of the same format, behind two pipes."""

    def __init__(self, command: list[str]) -> None:
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # what it prints; `close` closes it
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, bufsize=0
        )
        self.talking = False  # within a conversation of so many messages
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        streams = self.process.stdin.fileno(), self.process.stdout.fileno()
        for fd in streams:
            set_pipe_size(fd)
        self.writer, self.reader = Writer(streams[0]), Reader(streams[1])

    def trips(self, case: Case, calls: int, check: bool = False) -> Times:
        """Median ns of each part of so many round trips, one after another. A trip begins with a
        value (a struct, where natives are structs) and ends with one.

        check: raise Unsuitable if a value comes back changed.
        """
        order = {"payload": case.name, "calls": calls}
        self.writer.send(msgspec.json.encode(order))
        answer = msgspec.json.decode(self._receive())
        if "reason" in answer:
            raise formats.Unsuitable(f"in the worker: {answer['reason']}")
        self.talking = True
        format = case.format
        decode, read, build, encode = format.decode, format.read, format.build, format.encode
        foreign, now, send, receive = (
            format.foreign,
            time.perf_counter_ns,
            self.writer.send,
            self._receive,
        )
        steps: list[tuple[int, ...]] = []
        given = case.value if foreign else case.native
        for index in range(calls):
            native: Any = given(index)
            begin = made = now()
            if foreign:
                native = build(native)
                made = now()
            data = encode(native)
            encoded = now()
            send(data)
            frame = receive()
            received = now()
            native = decode(memoryview(frame))
            decoded = have = now()
            if foreign:
                value = read(native)
                have = now()
            steps.append((made - begin, encoded - made, decoded - received, have - decoded, have - begin))
            if check:
                expected = case.values[index % len(case.values)]
                if found := difference(expected, value if foreign else read(native)):
                    raise formats.Unsuitable(f"comes back changed from the worker: {found}")
        theirs = msgspec.json.decode(self._receive())
        self.talking = False
        names = ("build", "encode", "decode", "read", "total")
        mine = {n: statistics.median(t) for n, t in zip(names, zip(*steps, strict=True), strict=True)}
        parts = {step: mine[step] + theirs[step] for step in names[:-1]}
        pipe = max(0.0, mine["total"] - sum(parts.values()))
        return {**parts, "pipe": pipe, "total": mine["total"]}

    def _receive(self) -> Any:
        frame = self.reader.read()
        if frame is None:
            status = self.process.wait()
            raise formats.Unsuitable(f"its worker ended ({status}): {last_line(self.said)}")
        return frame

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()
        self.said.close()


class BridgePipe(Pipe):
    """A worker of this project, whose `echo_decoded` decodes the args and encodes them again."""

    def trips(self, case: Case, calls: int, check: bool = False) -> Times:
        """As of `Pipe`; what the worker does is in `pipe`."""
        encode, decode, now = case.format.encode, case.format.decode, time.perf_counter_ns
        steps: list[tuple[int, ...]] = []
        for index in range(calls):
            value = case.value(index)
            begin = now()
            data = encode({"id": index, "command": "echo_decoded", "args": {"value": value}})
            encoded = now()
            self.writer.send(data)
            frame = self._receive()
            received = now()
            reply = decode(memoryview(frame))
            end = now()
            steps.append((encoded - begin, received - encoded, end - received, end - begin))
            if check and (found := difference(value, reply["result"]["value"])):
                raise formats.Unsuitable(f"comes back changed from the worker: {found}")
        names = ("encode", "pipe", "decode", "total")
        return {n: statistics.median(t) for n, t in zip(names, zip(*steps, strict=True), strict=True)}


def timed(call: Callable[[Any], Any], inputs: list[Any], budget: float) -> float:
    """ns a call, warm: the median of BATCHES batches, a tenth of `budget` (seconds) before them."""
    now, count, started = time.perf_counter_ns, 0, time.perf_counter_ns()
    while count == 0 or now() - started < budget * 1e8:
        for given in inputs:
            call(given)
        count += len(inputs)
    each = (now() - started) / count
    batch = inputs * max(1, int(budget * 1e9 / BATCHES / each / len(inputs)))
    means = []
    for _ in range(BATCHES):
        started = now()
        for given in batch:
            call(given)
        means.append((now() - started) / len(batch))
    return statistics.median(means)


def timed_once(call: Callable[[Any], Any], make: Callable[[int], Any], count: int, size: int, budget: float) -> float:
    """As `timed`, with inputs that are used once: `make(0)` to `make(count - 1)`, and so again,
    made outside the clock, `size` at a time."""
    now = time.perf_counter_ns

    def mean(limit: float) -> float:
        spent = calls = 0
        while not calls or spent < limit:
            for first in range(0, count, size):
                inputs = [make(index) for index in range(first, min(first + size, count))]
                started = now()
                for given in inputs:
                    call(given)
                spent += now() - started
            calls += count
        return spent / calls

    mean(budget * 1e8)
    return statistics.median(mean(budget * 1e9 / BATCHES) for _ in range(BATCHES))


def reason_of(error: BaseException) -> str:
    """One line for a table."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed: pip install 'dspex-bridge[bench]'"
    text = " ".join(str(error).split())
    text = f"{text[:150]}…" if len(text) > 150 else text
    return text if isinstance(error, formats.Unsuitable) else f"{type(error).__name__}: {text}"


def last_line(file: IO[bytes]) -> str:
    """Of what a process wrote into it; of a traceback, the error."""
    file.seek(0)
    lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "without a word")


def _resident(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


def main(arguments: Sequence[str]) -> None:
    """Obey until the orders end."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints is no answer
    contender = Contender(arguments[0], arguments[1:])
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line)
        try:
            if order["do"] == "prepare":
                answer = contender.prepare(order["payload"], order["memory"])
            else:
                answer = contender.round(order["payload"], order["budget"])
        except Exception as error:
            answer = {"reason": reason_of(error)}
            if contender.pipe is not None and contender.pipe.talking:
                # Its worker may wait for messages that do not come.
                contender.pipe.process.kill()
                contender.pipe.close()
                contender.pipe = None
        answers.write(msgspec.json.encode(answer) + b"\n")
    if contender.pipe is not None:
        contender.pipe.close()


if __name__ == "__main__":
    main(sys.argv[1:])
