"""A host that exchanges raw bytes with a worker over pipes or a socket, so that tests can misbehave."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SUPPORT = str(Path(__file__).parent)
DEADLINE = 30.0  # seconds that a test waits before it fails


class Host:
    """Exchanges frames with a worker. Every wait has a deadline; missing it fails the test."""

    def __init__(self, input: Any, output: Any):
        """input, output: unbuffered binary files, to write to and to read from."""
        self.input = input
        self.output = output
        self._buffer = b""

    @classmethod
    def connected(cls, path: str) -> Host:
        """Return a host that is connected to a Unix socket."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            stream = os.fdopen(connection.detach(), "r+b", buffering=0)
        return cls(stream, stream)

    def send_bytes(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.input.write(view) :]

    def send_frame(self, payload: bytes) -> None:
        self.send_bytes(struct.pack(">I", len(payload)) + payload)

    def send(self, message: Any) -> None:
        self.send_frame(json.dumps(message).encode())

    def receive_frame(self, deadline: float = DEADLINE) -> bytes | None:
        """Return the next frame, or None at the end of the stream."""
        header = self._exactly(4, deadline)
        if header is None:
            return None
        return self._exactly(struct.unpack(">I", header)[0], deadline)

    def receive(self, deadline: float = DEADLINE) -> Any:
        frame = self.receive_frame(deadline)
        assert frame is not None, f"the stream ended; stderr: {self.stderr()}"
        return json.loads(frame)

    def ask(self, message: Any) -> Any:
        self.send(message)
        return self.receive()

    def call(self, command: str, args: Any = None, request_id: int | str = 1, **more: Any) -> Any:
        return self.ask({"id": request_id, "command": command, "args": args or {}, **more})

    def is_alive(self) -> bool:
        reply = self.call("ping", request_id="alive?")
        return reply["id"] == "alive?" and reply["success"]

    def stderr(self) -> str:
        """Return what the worker has written to stderr, as far as this host can know."""
        return "(not known)"

    def close(self) -> None:
        """Close both directions."""
        self.input.close()
        self.output.close()

    def _exactly(self, size: int, deadline: float) -> bytes | None:
        end = time.monotonic() + deadline
        while len(self._buffer) < size:
            ready, _, _ = select.select([self.output], [], [], end - time.monotonic())
            assert ready, f"no {size} bytes within {deadline} s, only {self._buffer[:200]!r}"
            chunk = os.read(self.output.fileno(), 1 << 20)
            if not chunk:
                assert not self._buffer, f"the stream ended inside a frame: {self._buffer[:200]!r}"
                return None
            self._buffer += chunk
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data


class Peer(Host):
    """A worker process and the pipes to it."""

    def __init__(
        self,
        *flags: str,
        adapter: str = "echo",
        env: dict[str, str] | None = None,
        blocking: bool = True,
        command: list[str] | None = None,
        stderr: Any = subprocess.PIPE,
    ):
        """Start the worker. command: the command line to use instead. stderr: as for Popen."""
        if command is None:
            command = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", adapter, *flags]
        paths = [SUPPORT, *filter(None, [os.environ.get("PYTHONPATH")])]
        worker_in, host_out = os.pipe()
        host_in, worker_out = os.pipe()
        for fd in (worker_in, worker_out):
            os.set_blocking(fd, blocking)
        self.process = subprocess.Popen(
            command,
            stdin=worker_in,
            stdout=worker_out,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
        )
        os.close(worker_in)
        os.close(worker_out)
        super().__init__(os.fdopen(host_out, "wb", buffering=0), os.fdopen(host_in, "rb", buffering=0))

    def close_input(self) -> None:
        self.input.close()

    def wait(self, deadline: float = DEADLINE) -> int:
        return self.process.wait(deadline)

    def stderr(self) -> str:
        """Wait for the end of the worker, and return what it has written to stderr."""
        self.process.wait(DEADLINE)
        return self.process.stderr.read().decode()

    def finish(self) -> None:
        """Close the pipes and end the process, whatever the test did."""
        self.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()


def wait_until(condition: Any, deadline: float = DEADLINE) -> None:
    """Wait until `condition()` is true."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"{condition} did not come true within {deadline} s"
        time.sleep(0.005)


def is_running(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
