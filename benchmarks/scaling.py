"""Measure what grows how on one machine: workers, calls, sessions, and what a shared store does for them.

    python benchmarks/scaling.py [--quick] [--only SECTION…] [--json FILE]

Prints the tables of docs/scaling.md; `routing.exs` and `routing.py` have those of several machines. The sections about
the store are in `scaling_store.py`: SQLite files are made in the current folder, those of a PostgreSQL server in
/tmp; without the server's programs, its rows are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import scaling_store
from pool import Template, memory, private
from pool_load import EXECUTE, SIGNATURE, prepare
from rounds import on_threads

from bridge import Client, Dispatcher, Options, Pool
from bridge.adapters.dspy import adapter
from bridge.worker.stats import memory_usage

HERE = Path(__file__).parent
OFFLINE = {"provider": "offline"}
AT_ONCE = {"provider": "scripted", "answers": {"": {"answer": "Paris"}}}
ROUNDS = 3
Row = dict[str, Any]  # the columns of a table by their titles


def workers(quick: bool) -> Iterator[Row]:
    """Forked from one template: from the first connection until each has run a program; all: with the template."""
    with Template("dspy") as template:
        for count in (1, 4, 16) if quick else (1, 2, 4, 8, 16, 32, 64):
            with ExitStack() as stack, ThreadPoolExecutor(8) as threads:

                def begin(_: int, stack: ExitStack = stack) -> Client:
                    client = stack.enter_context(template.connect())
                    prepare(client, OFFLINE)
                    client.call("execute_program", EXECUTE)
                    return client

                started = time.perf_counter()
                clients = list(threads.map(begin, range(count)))
                took = time.perf_counter() - started
                used = memory(template.pid, "Pss") + sum(memory(client.pid, "Pss") for client in clients)
                own = statistics.mean(private(client.pid) for client in clients)
            yield {
                "workers": count,
                "ready, ms": took * 1000,
                "ms each": took / count * 1000,
                "MiB, all": used,
                "MiB of its own, each": own,
            }


def spawned(quick: bool) -> Iterator[Row]:
    """The same workers, each started on its own."""
    for count in (1, 4):
        with ExitStack() as stack:
            started = time.perf_counter()
            clients = [stack.enter_context(Client.start(timeout=120.0)) for _ in range(count)]
            for client in clients:
                prepare(client, OFFLINE)
                client.call("execute_program", EXECUTE)
            took = time.perf_counter() - started
            used = sum(memory(client.pid, "Pss") for client in clients)
        yield {"workers": count, "ready, ms": took * 1000, "MiB, all": used, "MiB each": used / count}


def calls(quick: bool) -> Iterator[Row]:
    """Calls a second of a pool: programs whose model answers at once, and calls that wait 100 ms with 256 in flight."""
    env = {"PYTHONPATH": str(HERE)}
    programs = 320 if quick else 1600
    for count in (1, 2, 4, 8):
        with Pool(count, adapter="dspy") as pool:
            prepare(pool, AT_ONCE)
            rate(pool, "execute_program", EXECUTE, 16, programs)
            used, own = cpu(pool), time.process_time()
            rates = [rate(pool, "execute_program", EXECUTE, 16, programs) for _ in range(ROUNDS)]
            used, own = (cpu(pool) - used) / ROUNDS / programs, (time.process_time() - own) / ROUNDS / programs
        with Pool(count, adapter="pool_load:adapter", env=env) as pool:
            waiting = [rate(pool, "wait", {"seconds": 0.1}, 256, 1024 if quick else 4096) for _ in range(ROUNDS + 1)]
        yield {
            "workers": count,
            "programs/s": statistics.median(rates),
            "CPU of the worker for one, ms": used * 1000,
            "of the host, ms": own * 1000,
            "waiting calls/s": statistics.median(waiting[1:]),
        }


def rate(pool: Pool, command: str, args: Any, width: int, count: int) -> float:
    seconds, _ = on_threads(pool.call)(command, args, width, count)
    return count / seconds


def cpu(pool: Pool) -> float:
    """Return the seconds of CPU time that the workers of a pool have used."""
    total = 0.0
    for slot in pool.status()["slots"]:
        fields = Path(f"/proc/{slot['pid']}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def sessions(quick: bool) -> Iterator[Row]:
    """Bytes of a session in a worker's memory: empty, with 1 KiB of data, with a program and a model of its own."""
    for number in (1_000, 10_000) if quick else (1_000, 10_000, 100_000):
        row: Row = {"sessions": number}
        for kind in ("empty", "1 KiB of data", "a program and a model"):
            command = [sys.executable, __file__, "--child", kind, str(number)]
            row[f"bytes each, {kind}"] = float(subprocess.run(command, capture_output=True, check=True).stdout)
        yield row


def bytes_each(kind: str, number: int) -> float:
    """Return by how many bytes this process grows for each of so many sessions."""
    dispatcher = Dispatcher(adapter, Options(max_sessions=2 * number, session_ttl=86_400.0))

    def call(command: str, session: int, **args: Any) -> None:
        request = {"id": 1, "command": command, "args": args, "session_id": f"session-{session:08}"}
        reply = json.loads(dispatcher.call(json.dumps(request).encode()))
        assert reply["success"], reply

    def fill(session: int) -> None:
        if kind == "empty":
            call("create_session", session)
        elif kind == "1 KiB of data":
            call("update_session_data", session, key="note", value="x" * 1024)
        else:
            call("configure_lm", session, **OFFLINE)
            call("create_program", session, id="qa", signature=SIGNATURE)

    fill(-1)
    before = memory_usage()["rss"]
    for session in range(number):
        fill(session)
    return float(memory_usage()["rss"] - before) / number


SECTIONS: dict[str, Callable[[bool], Iterator[Row]]] = {
    **{section.__name__: section for section in (workers, spawned, calls, sessions)},
    **scaling_store.SECTIONS,
}


def show(name: str, section: Callable[[bool], Iterator[Row]], quick: bool) -> list[Row]:
    """Print the table of a section, each row as soon as it is measured, and return the rows."""
    print(f"\n## {name}\n\n{section.__doc__}\n", flush=True)
    rows: list[Row] = []
    for row in section(quick):
        if not rows:
            print("|" + "|".join(f" {title} " for title in row) + "|\n" + "|---" * len(row) + "|")
        print("|" + "|".join(f" {text(value)} " for value in row.values()) + "|", flush=True)
        rows.append(row)
    return rows


def text(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes and calls")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS], metavar="SECTION")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, number = options.child
        print(bytes_each(kind, int(number)))
        return
    tables = {name: show(name, SECTIONS[name], options.quick) for name in options.only}
    if options.json:
        Path(options.json).write_text(json.dumps(tables, indent=1))


if __name__ == "__main__":
    main()
