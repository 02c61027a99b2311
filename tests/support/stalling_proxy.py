"""A relay between a host and a worker that can stop, slow, split, cut or corrupt the stream.

A host uses `StallingProxy.python` as the worker's interpreter, so it works with any host that starts
workers. A `Pump` alone works between any two descriptors, including sockets.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHUNK = 1 << 16  # bytes
TO_WORKER, TO_HOST = "to_worker", "to_host"


class Pump:
    """Copies bytes from `source` to `sink` until the end of `source`, then closes `sink`."""

    def __init__(self, source: int, sink: int) -> None:
        self.passed = 0  # bytes
        self._source, self._sink = source, sink
        self._can_pass = threading.Event()
        self._can_pass.set()
        self._piece = CHUNK
        self._rate: float | None = None
        self._replacement = b""
        self._is_cut = False
        self._writing = threading.Lock()
        threading.Thread(target=self._pass, daemon=True).start()

    def stop(self) -> None:
        """Stop until `go`."""
        self._can_pass.clear()

    def go(self) -> None:
        self._can_pass.set()

    def slow(self, bytes_per_second: float | None) -> None:
        """Limit the rate. None: no limit."""
        self._rate = bytes_per_second

    def split(self, size: int) -> None:
        """Write at most `size` bytes at a time."""
        self._piece = size

    def corrupt(self, replacement: bytes) -> None:
        """Replace the next bytes."""
        self._replacement = replacement

    def insert(self, data: bytes) -> None:
        """Write `data` between two pieces."""
        with self._writing:
            self._write(data)

    def cut(self) -> None:
        """Close the sink."""
        with self._writing:
            if not self._is_cut:
                self._is_cut = True
                os.close(self._sink)

    def _pass(self) -> None:
        try:
            while chunk := self._read():
                while chunk:
                    piece, chunk = chunk[: self._piece], chunk[self._piece :]
                    self._can_pass.wait()
                    if self._rate is not None:
                        time.sleep(len(piece) / self._rate)
                    with self._writing:
                        if self._is_cut:
                            return
                        self._write(self._changed(piece))
        except OSError:
            pass  # either end was closed
        finally:
            self.cut()
            os.close(self._source)

    def _read(self) -> bytes:
        self._can_pass.wait()
        return os.read(self._source, CHUNK)

    def _changed(self, piece: bytes) -> bytes:
        count = min(len(piece), len(self._replacement))
        changed = self._replacement[:count] + piece[count:]
        self._replacement = self._replacement[count:]
        return changed

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._sink, view) :]
        self.passed += len(data)


class StallingProxy:
    """Controls the relay of one worker. python: the program that starts relay and worker."""

    def __init__(self, directory: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(directory / "control"))
        self._listener.listen(1)
        self._control: Any = None
        launcher = directory / "python"
        launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{directory}/control" "$@"\n')
        launcher.chmod(0o755)
        self.python = str(launcher)

    def tell(self, way: str, method: str, *args: Any) -> Any:
        """Call a method of the pump `TO_WORKER` or `TO_HOST`. Bytes are sent as lists."""
        if self._control is None:
            connection, _ = self._listener.accept()
            self._control = connection.makefile("rw")
            connection.close()
        try:
            self._control.write(json.dumps([way, method, *args]) + "\n")
            self._control.flush()
            return json.loads(self._control.readline() or "null")
        except OSError:  # the command made the host end the relay
            return None

    def stop(self, way: str) -> None:
        self.tell(way, "stop")

    def go(self, way: str) -> None:
        self.tell(way, "go")

    def slow(self, way: str, bytes_per_second: float | None) -> None:
        self.tell(way, "slow", bytes_per_second)

    def split(self, way: str, size: int) -> None:
        self.tell(way, "split", size)

    def cut(self, way: str) -> None:
        self.tell(way, "cut")

    def corrupt(self, way: str, replacement: bytes) -> None:
        self.tell(way, "corrupt", list(replacement))

    def insert(self, way: str, data: bytes) -> None:
        self.tell(way, "insert", list(data))

    @property
    def worker_pid(self) -> int:
        return int(self.tell("", "pid"))

    def passed(self, way: str) -> int:
        """Return how many bytes have been copied."""
        return int(self.tell(way, "passed"))

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self._listener.close()


def relay(control_path: str, arguments: list[str]) -> None:
    """Start a worker with `arguments`, and relay between it and the stdio of this process."""
    worker = subprocess.Popen([sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert worker.stdin is not None
    assert worker.stdout is not None
    pumps = {
        TO_WORKER: Pump(0, os.dup(worker.stdin.fileno())),
        TO_HOST: Pump(os.dup(worker.stdout.fileno()), 1),
    }
    worker.stdin.close()
    worker.stdout.close()
    threading.Thread(target=_execute, args=(control_path, pumps, worker.pid), daemon=True).start()
    status = worker.wait()
    time.sleep(0.05)  # let the pumps copy its last output
    os._exit(status if status >= 0 else 128 - status)


def _execute(control_path: str, pumps: dict[str, Pump], pid: int) -> None:
    control = socket.socket(socket.AF_UNIX)
    control.connect(control_path)
    lines = control.makefile("rw")
    for line in lines:
        way, method, *args = json.loads(line)
        answer: Any = None
        if method == "pid":
            answer = pid
        elif method == "passed":
            answer = pumps[way].passed
        else:
            args = [bytes(arg) if isinstance(arg, list) else arg for arg in args]
            getattr(pumps[way], method)(*args)
        lines.write(json.dumps(answer) + "\n")
        lines.flush()


if __name__ == "__main__":
    relay(sys.argv[1], sys.argv[2:])
