"""A host that sends a long array to a worker and receives one, and prints the peak memory of both processes.

It prints resident memory and Python's own, in bytes in addition to the payload.

    python tests/support/array_memory.py json|msgpack|etf [BYTES]
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy

from bridge import Client

UNIT = 1024  # bytes, the unit of /proc


def resident(pid: int, line: str) -> int:
    """Return VmRSS or VmHWM of a process in bytes."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(entry.split()[1]) for entry in status if entry.startswith(line)) * UNIT


class Peaks:
    """The peak memory of host and worker since this object was made."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._pids = {"host": os.getpid(), "worker": client.pid}
        gc.collect()
        client.call("traced")
        tracemalloc.reset_peak()
        self._traced = tracemalloc.get_traced_memory()[0]
        self._before = {name: resident(pid, "VmRSS") for name, pid in self._pids.items()}
        for pid in self._pids.values():
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets VmHWM

    def read(self, **payloads: int) -> dict[str, Any]:
        """Return the peaks. payloads: bytes that host or worker have to hold, which are subtracted."""
        resident_peak = {name: resident(pid, "VmHWM") for name, pid in self._pids.items()}
        traced = {
            "host": tracemalloc.get_traced_memory()[1] - self._traced,
            "worker": self._client.call("traced")["peak"],
        }
        return {
            name: {
                "resident": resident_peak[name] - self._before[name] - payloads.get(name, 0),
                "python": traced[name],
            }
            for name in self._pids
        }


def main() -> None:
    format, size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 64 << 20
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)
    x = numpy.ones(size // 4, "f4")
    tracemalloc.start()
    with Client.start(adapter="arrays:adapter", format=format, max_frame=2 * size) as client:
        for command in ("facts", "back", "back_on_a_thread"):
            client.call(command, {"x": x[:1000]})
        client.call("make", {"size": size})
        peaks = Peaks(client)
        client.call("facts", {"x": x})
        sent = peaks.read(worker=size)
        peaks = Peaks(client)
        made = client.call("made")["x"]
        got = peaks.read(host=size)
        assert made.nbytes == size
        print(json.dumps({"sent": sent, "got": got}))


if __name__ == "__main__":
    main()
