"""The host processes of `client.py` and `programs.py`: Python programs that call a worker, each in its own way.

    python client_host.py KIND [MODEL]

`KINDS` has the kinds. MODEL: settings of `configure_lm`, in JSON; the worker runs DSPy then. Its key `program` has args
of `create_program`. Each line of stdin is a task, for example {"command": "ping", "size": 0, "width": 16, "calls":
20000}: 20 000 calls in all, 16 at a time. The answer is a line of figures. Nothing but `Client` and `aio.Client` is
used of the bridge, so that the interpreter of any build can run this file.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import queue
import statistics
import struct
import subprocess
import sys
import threading
import time
from typing import Any

import msgspec
from client_peers import connection, processes, threads
from dspy_peers import dspy, parallel
from rounds import Model, Run, flat, now, on_threads

PAGE = os.sysconf("SC_PAGESIZE")
PIPE_BYTES = 1 << 20  # of the bare pipe; the bridge sets the same
SIGNATURE = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
SCRIPTED = {"provider": "scripted", "answers": {"": {"answer": "Paris"}}}
EXECUTE = {"program_id": "qa", "inputs": {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}}


def bridge(model: Model) -> tuple[Run, list[int]]:
    """A thread waits for each call: `Client.call`."""
    client = started(model)
    return on_threads(client.call), [client.pid]


def submit(model: Model) -> tuple[Run, list[int]]:
    """One thread keeps calls in flight: `Client.submit`. The thread that runs a callback submits the next call."""
    client = started(model)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        left, ended = itertools.count(width), queue.SimpleQueue[object]()

        def again(before: Any) -> None:
            before.result()
            if next(left) < calls:
                client.submit(command, args).add_done_callback(again)
            else:
                ended.put(before)

        start = now()
        for _ in range(width):
            client.submit(command, args).add_done_callback(again)
        for _ in range(width):
            ended.get(timeout=60.0)
        return now() - start, []

    return run, [client.pid]


def aio(model: Model) -> tuple[Run, list[int]]:
    """One event loop, with a task for each call in flight: `aio.Client.call`."""
    return on_loop(asyncio.new_event_loop(), model)


def uvloop(model: Model) -> tuple[Run, list[int]]:
    import uvloop

    return on_loop(uvloop.new_event_loop(), model)


def on_loop(loop: asyncio.AbstractEventLoop, model: Model) -> tuple[Run, list[int]]:
    from bridge.aio import Client

    client = loop.run_until_complete(Client.start(adapter=adapter_of(model)))
    for command, args in setup(model):
        loop.run_until_complete(client.call(command, args, timeout=60.0))

    async def several(command: str, args: Any, count: int) -> list[float]:
        times = []
        for _ in range(count):
            start = now()
            await client.call(command, args)
            times.append(now() - start)
        return times

    async def all_of_them(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        start = now()
        times = await asyncio.gather(*(several(command, args, calls // width) for _ in range(width)))
        return now() - start, flat(times)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        return loop.run_until_complete(all_of_them(command, args, width, calls))

    return run, [client.pid]


def first_chunk(model: Model) -> tuple[Run, list[int]]:
    """A thread waits for the first chunk of each call, and then for its end: `Client.stream`."""
    client = started(model)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        started, times = now(), []
        for _ in range(calls):
            start, chunks = now(), []
            for event, _ in client.stream(command, args):
                if event == "chunk":
                    chunks.append(now() - start)
            times.append(chunks[0])
        return now() - started, times

    return run, [client.pid]


def batch(model: Model) -> tuple[Run, list[int]]:
    """One call for all rows, whose reply has the results: `execute_batch`."""
    client = started(model)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        rows, start = rows_of(args, calls), now()
        found = client.call("execute_batch", {"program_id": "qa", "inputs": rows, "threads": width}, timeout=600.0)
        took = now() - start
        assert found["succeeded"] == calls
        return took, []

    return run, [client.pid]


def batch_events(model: Model) -> tuple[Run, list[int]]:
    """One call for all rows, whose results are events only: `execute_batch` with `results` false."""
    client = started(model)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        rows, start = rows_of(args, calls), now()
        batch = {"program_id": "qa", "inputs": rows, "threads": width, "results": False}
        with client.stream("execute_batch", batch, timeout=600.0) as stream:
            found = sum(event == "row" for event, _ in stream)
        took = now() - start
        assert found == calls
        return took, []

    return run, [client.pid]


def rows_of(args: Any, count: int) -> list[Any]:
    inputs = args["inputs"]
    return [{**inputs, "question": f"{inputs['question']} {number}"} for number in range(count)]


def pipe(model: Model) -> tuple[Run, list[int]]:
    """A worker of the bridge on two pipes, with msgspec and struct, and a lock for its callers."""
    command = [sys.executable, "-P", "-m", "bridge", "worker", "--adapter", adapter_of(model)]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    assert worker.stdin
    assert worker.stdout
    into, out, lock, ids = worker.stdin.fileno(), worker.stdout.fileno(), threading.Lock(), itertools.count(1)
    for fd in (into, out):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder().decode

    def read() -> Any:
        data = os.read(out, 1 << 16)
        (length,) = struct.unpack_from(">I", data)
        if len(data) - 4 == length:
            return memoryview(data)[4:]
        frame = bytearray(4 + length)
        frame[: len(data)] = data
        view, have = memoryview(frame), len(data)
        while have < len(frame):
            have += os.readv(out, [view[have:]])
        return view[4:]

    def call(command: str, args: Any) -> Any:
        request = encode({"id": next(ids), "command": command, "args": args})
        with lock:
            os.writev(into, [struct.pack(">I", len(request)), request])
            reply = decode(read())
        if not reply["success"]:
            raise RuntimeError(reply["error"])
        return reply["result"]

    for command, args in setup(model):
        call(command, args)
    return on_threads(call), [worker.pid]


KINDS = {
    kind.__name__: kind
    for kind in (
        *(bridge, submit, aio, uvloop, first_chunk, batch, batch_events, pipe),
        *(connection, processes, threads, dspy, parallel),
    )
}


def adapter_of(model: Model) -> str:
    return "dspy" if model else "echo"


def setup(model: Model) -> list[tuple[str, Any]]:
    """Return the calls that prepare a worker for `execute_program`."""
    if not model:
        return []
    settings = {name: value for name, value in model.items() if name != "program"}
    program = {"id": "qa", "signature": SIGNATURE, **model.get("program", {})}
    tools = ("register_tools", {"tools": [{"name": "look"}]})
    return [("configure_lm", settings), tools, ("create_program", program), ("execute_program", EXECUTE)]


def started(model: Model) -> Any:
    from bridge import Client

    client = Client.start(adapter=adapter_of(model))
    for command, args in setup(model):
        client.call(command, args, timeout=60.0)
    return client


def cpu_seconds(pids: list[int]) -> float:
    """Return the CPU time of processes. The clock of a process is numbered as clock_getcpuclockid(3) does it."""
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def figures(run: Run, pids: list[int], command: str, size: int, width: int, calls: int) -> dict[str, float]:
    """Return the figures of a task: times and CPU times in µs a call, and the most threads that this process had.

    size: bytes of the payload. cpu_us: of this process and the worker. grown_mib: by how much the memory of the worker
    is larger afterwards, or that of this process without a worker.
    """
    calls -= calls % width
    args = EXECUTE if command == "execute_program" else {"data": os.urandom(size)} if size else {}
    run(command, args, width, width * max(1, calls // width // 10))
    ended, counts = threading.Event(), [0]
    watch = threading.Thread(target=count_threads, args=(ended, counts))
    watch.start()
    before = memory(pids)
    host, worker = time.process_time(), cpu_seconds(pids)
    took, times = run(command, args, width, calls)
    host, worker = time.process_time() - host, cpu_seconds(pids) - worker
    ended.set()
    watch.join()
    row = {"us": took / calls, "cpu_us": (host + worker) / calls, "host_cpu_us": host / calls}
    if times:
        row["p50_us"] = statistics.median(times)
    grown = (memory(pids) - before) / (1 << 20)
    return {name: value * 1e6 for name, value in row.items()} | {"threads": max(counts), "grown_mib": grown}


def memory(pids: list[int]) -> int:
    """Return the bytes of memory that processes have, or this one if there are none."""
    used = 0
    for pid in pids or ["self"]:
        with open(f"/proc/{pid}/statm") as statm:
            used += int(statm.read().split()[1]) * PAGE
    return used


def count_threads(ended: threading.Event, counts: list[int]) -> None:
    """Append the number of this process's other threads to `counts`, several times a second."""
    while not ended.wait(0.02):
        counts.append(len(os.listdir("/proc/self/task")) - 1)


def main() -> None:
    kind, *model = sys.argv[1:]
    try:
        run, pids = KINDS[kind](json.loads(model[0]) if model else None)
    except ModuleNotFoundError:
        print('{"has": false}', flush=True)
        return
    print('{"has": true}', flush=True)
    for line in sys.stdin:
        print(json.dumps(figures(run, pids, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
