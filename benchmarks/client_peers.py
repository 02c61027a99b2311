"""What a Python program may use to call another process instead of the bridge: multiprocessing's connections.

Each function returns what `client_host.KINDS` needs.
"""

from __future__ import annotations

import itertools
import multiprocessing
import queue
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from rounds import Model, Run, on_threads

MOST_THREADS = 16


def connection(_: Model) -> tuple[Run, list[int]]:
    """A `multiprocessing.Connection` to a process, and a lock for its callers."""
    there, pid = served()
    lock, ids = threading.Lock(), itertools.count(1)

    def call(command: str, args: Any) -> Any:
        with lock:
            return ask(there, next(ids), command, args)

    return on_threads(call), [pid]


def processes(_: Model) -> tuple[Run, list[int]]:
    """A `multiprocessing.Connection` and a process for each thread."""
    return on_own_connections([served() for _ in range(MOST_THREADS)])


def threads(_: Model) -> tuple[Run, list[int]]:
    """A `multiprocessing.Connection` for each thread, all to one process, which has a thread for each."""
    pairs = [multiprocessing.Pipe() for _ in range(MOST_THREADS)]

    def serve() -> None:
        servers = [threading.Thread(target=answer_all, args=(there,)) for _, there in pairs]
        for server in servers:
            server.start()
        for server in servers:
            server.join()

    process = multiprocessing.Process(target=serve, daemon=True)
    process.start()
    assert process.pid
    return on_own_connections([(here, process.pid) for here, _ in pairs])


def served() -> tuple[Connection, int]:
    """Start a process that answers requests, and return the connection to it and its id."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.Process(target=answer_all, args=(there,), daemon=True)
    process.start()
    assert process.pid
    return here, process.pid


def answer_all(connection: Connection) -> None:
    start, commands = time.monotonic(), {"echo": dict, "echo_decoded": dict}
    commands["ping"] = lambda _: {"status": "ok", "timestamp": time.time(), "uptime": time.monotonic() - start}
    while True:
        request = connection.recv()
        try:
            result = commands[request["command"]](request["args"])
            reply = {"id": request["id"], "success": True, "result": result}
        except Exception as error:
            reply = {"id": request["id"], "success": False, "error": str(error)}
        connection.send(reply)


def ask(connection: Connection, id: int, command: str, args: Any) -> Any:
    connection.send({"id": id, "command": command, "args": args})
    reply = connection.recv()
    if not reply["success"]:
        raise RuntimeError(reply["error"])
    return reply["result"]


def on_own_connections(servers: list[tuple[Connection, int]]) -> tuple[Run, list[int]]:
    """Return a function that calls from as many threads as there are connections, or fewer."""
    ids = itertools.count(1)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        free, own = queue.SimpleQueue[Connection](), threading.local()
        for here, _ in servers[:width]:
            free.put(here)

        def call(command: str, args: Any) -> Any:
            if not hasattr(own, "connection"):
                own.connection = free.get()
            return ask(own.connection, next(ids), command, args)

        return on_threads(call)(command, args, width, calls)

    return run, list({pid for _, pid in servers})
