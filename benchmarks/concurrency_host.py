"""Talk to the other processes of `concurrency.py`, and read their figures from /proc."""

from __future__ import annotations

import itertools
import json
import os
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from concurrency_peers import ANSWERS, INPUTS, SLOW, now, url

from bridge import BridgeError, Client
from bridge.host.calls import Call

FIELDS = {"inputs": [{"name": name} for name in INPUTS], "outputs": [{"name": "answer"}]}
PROGRAM = {"id": "qa", "signature": FIELDS}
EXECUTE = {"program_id": "qa", "inputs": INPUTS}
INSTANT = {"provider": "scripted", "answers": ANSWERS}
ADAPTER = "concurrency_peers:adapter"
PEERS = str(Path(__file__).with_name("concurrency_peers.py"))
WIDTH = 64  # calls in flight, and threads
GAP = 0.001  # seconds between two probes
HELD = 2.0  # seconds that a handler holds the GIL

Figures = dict[str, float]


class Target(NamedTuple):
    """A limit for a value: an upper one, or a lower one with `least`."""

    text: str
    value: float
    limit: float
    least: bool = False


def reached(target: Target) -> bool:
    return target.value >= target.limit if target.least else target.value <= target.limit


def verdict(name: str, target: Target) -> str:
    word, side = "reached" if reached(target) else "missed", ">=" if target.least else "<="
    text = f"{name}: {target.text}"
    return f"{word:8} {text:60} {target.value:10.3f}, target {side} {target.limit:g}"


class Peer:
    """A process that runs `concurrency_peers.py`."""

    def __init__(self, role: str, port: int = 0) -> None:
        command, pipe = [sys.executable, PEERS, role], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, bufsize=1)
        self.pid, self.port = self.process.pid, port

    def run(self, call: str, threads: int = 1, calls: int = 0) -> Any:
        assert self.process.stdin
        task = {"call": call, "threads": threads, "calls": calls or threads, "port": self.port}
        self.process.stdin.write(json.dumps(task) + "\n")
        return self.line()

    def line(self) -> Any:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Raw:
    """A worker on a bare pipe, driven by one thread, so that no other thread of the host disturbs the timing."""

    def __init__(self, adapter: str) -> None:
        command = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", adapter]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, bufsize=0)
        assert self.process.stdin
        assert self.process.stdout
        self.into, self.out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.data, self.open, self.ids, self.refill = bytearray(), 0, itertools.count(1), False

    def send(self, command: str, args: Any) -> None:
        self.open += 1
        os.write(self.into, frame(next(self.ids), command, args))

    def call(self, command: str, args: Any) -> None:
        self.send(command, args)
        self.wait()

    def take(self, timeout: float) -> int:
        """Read what arrives within `timeout` seconds, and return how many probes were answered."""
        if not select.select([self.out], [], [], max(0.0, timeout))[0]:
            return 0
        data = os.read(self.out, 1 << 16)
        assert data, "the worker is gone"
        self.data += data
        answered = 0
        while (end := 4 + int.from_bytes(self.data[:4])) <= len(self.data):
            reply = bytes(self.data[4:end])
            del self.data[:end]
            if not reply or reply.startswith(b'{"id":0,'):
                answered += 1
                continue
            assert b'"success":true' in reply, reply
            self.open -= 1
            if self.refill:
                self.send("execute_program", EXECUTE)
        return answered

    def wait(self) -> None:
        while self.open:
            self.take(30.0)

    def probe(
        self,
        probe: bytes,
        seconds: float,
        calls: int = 0,
        refill: bool = False,
        at: Raw | None = None,
    ) -> Figures:
        """Return latencies of single probes while `calls` executes are processed.

        refill: keep that many in flight instead. at: probe this worker instead.
        """
        self.refill, times, until = refill, [], now() + seconds
        for _ in range(calls):
            self.send("execute_program", EXECUTE)
        self.time(PING)  # wait until all of them have been read,
        self.time(HEARTBEAT)  # and until the reader waits for input again, so that no probe waits for Python
        least = 0 if refill or not calls else WIDTH
        while now() < until and self.open >= least:
            pause = now() + GAP
            while (rest := pause - now()) > 0:
                self.take(rest)
            times.append((at or self).time(probe))
        self.refill = False
        self.wait()
        return spread(times)

    def time(self, probe: bytes, answers: int = 1) -> float:
        """Send probes, and return the seconds until the last answer."""
        start = now()
        os.write(self.into, probe)
        while answers > 0:
            answers -= self.take(30.0)
        return now() - start

    def held(self, first: bytes = b"") -> Figures:
        """Return latencies of heartbeats while a handler holds the GIL, or of one heartbeat after `first`."""
        self.send("hold_gil", {"seconds": HELD})
        time.sleep(0.1)
        if first:
            figures = spread([self.time(first + HEARTBEAT, answers=2)])
        else:
            until, times = now() + HELD - 0.2, []
            while now() < until:
                time.sleep(GAP)
                times.append(self.time(HEARTBEAT))
            figures = spread(times)
        self.wait()
        return figures

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


def frame(id: int, command: str, args: Any) -> bytes:
    request = json.dumps({"id": id, "command": command, "args": args}).encode()
    return len(request).to_bytes(4, "big") + request


HEARTBEAT, PING = bytes(4), frame(0, "ping", {})


def spread(seconds: Sequence[float]) -> Figures:
    """Return the distribution of latencies in µs."""
    points = statistics.quantiles(seconds, n=100, method="inclusive") if len(seconds) > 1 else [*seconds] * 99
    figures = {"p50_us": points[49], "p90_us": points[89], "p99_us": points[98]}
    return {name: value * 1e6 for name, value in (figures | {"max_us": max(seconds)}).items()}


def configured(settings: dict[str, Any], *flags: str) -> Client:
    """Start a worker with a program that has run once."""
    client = Client.start(flags=flags)
    client.call("configure_lm", settings, timeout=60.0)
    client.call("create_program", PROGRAM)
    client.call("execute_program", EXECUTE)
    return client


def served(port: int, delay: int) -> dict[str, Any]:
    return {"model": f"openai/chat-{delay}", "api_key": "none", "api_base": url(port)}


def flood(client: Client, calls: int, stop: Callable[[], bool] = bool) -> threading.Event:
    """Keep `WIDTH` executes in flight, `calls` in all or until `stop()`. Return an event that is set then."""
    done, left, ended = threading.Event(), itertools.count(), itertools.count(1)

    def again(before: Any = None) -> None:
        if before is not None:
            before.result()
        if next(left) < calls and not stop():
            client.submit("execute_program", EXECUTE).add_done_callback(again)
        elif next(ended) == WIDTH:
            done.set()

    for _ in range(WIDTH):
        again()
    return done


def lateness(client: Client, command: str, calls: int, width: int, cancel: bool) -> Figures:
    """Return how long after its deadline, or after cancel(), a call ends.

    width: calls that are open at once; they end one millisecond after another.
    """
    late: list[float] = []
    code = "cancelled" if cancel else "deadline_exceeded"

    def ended(due: list[float], _: Any) -> None:
        late.append(now() - due[0])

    while len(late) < calls:
        open_calls = []
        for index in range(width):
            wait = 0.05 + index / 1000
            args = EXECUTE if command == "execute_program" else {"seconds": wait + 0.5}
            due = [now() + wait]
            call = client.submit(command, args, timeout=None if cancel else wait)
            call.add_done_callback(partial(ended, due))
            open_calls.append((due, call))
        for due, call in open_calls:
            if cancel:
                time.sleep(max(0.0, due[0] - now()))
                due[0] = now()
                call.cancel()
            assert error_code(call) == code
    return milliseconds(late)


def error_code(call: Call) -> str | None:
    """Return the code of the error that ends a call, or None if it succeeds."""
    try:
        call.result(30.0)
    except BridgeError as error:
        return error.code
    return None


def together(client: Client, command: str, count: int) -> Figures:
    args = {"execute_program": EXECUTE, "sleep": {"seconds": SLOW / 1000}}.get(command)
    start = now()
    for call in [client.submit(command, args) for _ in range(count)]:
        call.result(60.0)
    return {"s": now() - start}


def once(peer: Peer, call: str, threads: int) -> Figures:
    return {"s": peer.run(call, threads)["s"]}


def milliseconds(seconds: list[float]) -> Figures:
    return {name[:3] + "_ms": value / 1000 for name, value in spread(seconds).items()}


def rss(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def switches(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep."""
    files = Path(f"/proc/{pid}/task").glob("*/status")
    return sum(int(f.read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for f in files)
