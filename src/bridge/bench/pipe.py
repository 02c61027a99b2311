"""Round trips to a worker process over two pipes, and the parts of their time."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from typing import IO, Any

import msgspec

from bridge._framing import Reader, Writer, set_buffer_size
from bridge.bench.case import Case, Times
from bridge.bench.format import Unsuitable
from bridge.bench.schema import difference


class Pipe:
    """A worker of the same format, and two pipes to it."""

    def __init__(self, command: list[str]) -> None:
        self.output = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.output, bufsize=0
        )
        self.in_conversation = False  # the worker expects messages that were announced
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        streams = self.process.stdin.fileno(), self.process.stdout.fileno()
        for fd in streams:
            set_buffer_size(fd)
        self.writer, self.reader = Writer(streams[0]), Reader(streams[1])

    def trips(self, case: Case, calls: int, check: bool = False) -> Times:
        """Make `calls` round trips, one after another, and return the median ns of each part.

        A trip begins and ends with a value, or with a struct if natives are structs.
        check: raise Unsuitable if a value comes back changed.
        """
        order = {"payload": case.name, "calls": calls}
        self.writer.send(msgspec.json.encode(order))
        answer = msgspec.json.decode(self._receive())
        if "reason" in answer:
            raise Unsuitable(f"in the worker: {answer['reason']}")
        self.in_conversation = True
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
                    raise Unsuitable(f"comes back changed from the worker: {found}")
        theirs = msgspec.json.decode(self._receive())
        self.in_conversation = False
        names = ("build", "encode", "decode", "read", "total")
        mine = {n: statistics.median(t) for n, t in zip(names, zip(*steps, strict=True), strict=True)}
        parts = {step: mine[step] + theirs[step] for step in names[:-1]}
        pipe = max(0.0, mine["total"] - sum(parts.values()))
        return {**parts, "pipe": pipe, "total": mine["total"]}

    def _receive(self) -> Any:
        frame = self.reader.read()
        if frame is None:
            status = self.process.wait()
            raise Unsuitable(f"its worker ended ({status}): {last_line(self.output)}")
        return frame

    def close(self) -> None:
        """Close the pipes, and wait for the end of the worker."""
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        self.process.wait()
        self.output.close()


class BridgePipe(Pipe):
    """Pipes to a worker of this project; its command `echo_decoded` decodes args and encodes them again."""

    def trips(self, case: Case, calls: int, check: bool = False) -> Times:
        """Make round trips as `Pipe.trips` does. The work of the worker counts as `pipe`."""
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
                raise Unsuitable(f"comes back changed from the worker: {found}")
        names = ("encode", "pipe", "decode", "total")
        return {n: statistics.median(t) for n, t in zip(names, zip(*steps, strict=True), strict=True)}


def last_line(file: IO[bytes]) -> str:
    """Return the last line that a process has written to `file`; of a traceback, that is the error."""
    file.seek(0)
    lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
