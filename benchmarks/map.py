"""Measure `map`: rows a second and CPU time for each, beside `execute_batch`, `dspy.Parallel` and the sum of its nodes.

The model answers at once. Contenders take turns, round by round; a ratio is the median of those of the rounds. CPU
time, which does not depend on what else the machine does, is that of all processes: host, workers and Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dspy_peers

from bridge import Client, Pool
from bridge.experiment import map as data_set_map
from bridge.experiment.asking import Limits
from bridge.experiment.dataset import CALLS_PER_WORKER, MOST_IN_A_CALL
from bridge.experiment.rows import Row
from bridge.experiment.running import Runs

SIGNATURE = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
MODEL = {"provider": "scripted", "answers": {"": {"answer": "Paris"}}}
INPUTS = {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}
AT_ONCE = 16  # rows, for each worker
CHUNK = 100  # rows of a batch
TICKS = os.sysconf("SC_CLK_TCK")

Run = Callable[[int], object]  # runs the program on so many rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=2000, help="of each round (default 2000)")
    add("--rounds", type=int, default=5, help="(default 5)")
    add("--only", choices=("worker", "ray", "memory"), action="append", help="sections; default: worker and memory")
    add("--json", type=Path, metavar="FILE", help="write the figures of all rounds")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    for section in arguments.only or ("worker", "memory"):
        if section == "memory":
            figures[section] = memory((arguments.rows, 10 * arguments.rows))
            continue
        with ExitStack() as stack:
            contenders = (one_worker if section == "worker" else two_nodes)(stack)
            figures[section] = measure(contenders, arguments.rows, arguments.rounds)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure(contenders: dict[str, Run], rows: int, rounds: int) -> dict[str, Any]:
    """Print and return the figures of contenders, the first of which is the baseline."""
    for run in contenders.values():
        run(rows // 10)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            cpu, start = cpu_seconds(), time.perf_counter()
            run(rows)
            found[name].append((time.perf_counter() - start, cpu_seconds() - cpu))
    base = next(iter(found.values()))
    print(f"{'':36}{'rows/s':>10}{'x':>7}{'CPU µs/row':>12}{'x':>7}")
    for name, each in found.items():
        wall, cpu = (statistics.median(times) for times in zip(*each, strict=True))
        pairs = list(zip(base, each, strict=True))
        faster, cheaper = (statistics.median(b[kind] / e[kind] for b, e in pairs) for kind in (0, 1))
        print(f"{name:36}{rows / wall:10.0f}{faster:7.2f}{1e6 * cpu / rows:12.0f}{cheaper:7.2f}", flush=True)
    return found


def one_worker(stack: ExitStack) -> dict[str, Run]:
    """Return what runs a program on one core: a call with all rows, `map`, batches of rows, and DSPy."""
    client = stack.enter_context(Client.start())
    prepare(client)
    pool = stack.enter_context(Pool(1, format="json"))
    prepare(pool)
    parallel, _ = dspy_peers.parallel({"answers": MODEL["answers"]})
    return {
        "execute_batch, one call": lambda rows: batch(client, rows).result(),
        "map": lambda rows: on_rows(pool, rows, AT_ONCE),
        f"batches of {CHUNK}, two at a time": lambda rows: in_batches(pool, rows),
        "dspy.Parallel": lambda rows: parallel("execute_program", {"inputs": INPUTS}, 8, rows),
    }


def two_nodes(stack: ExitStack) -> dict[str, Run]:
    """Return two maps side by side, and one on two nodes of a Ray cluster, with one worker each."""
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
    from ray.cluster_utils import Cluster

    from bridge import RayPool

    node = {"num_cpus": 1, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    stack.callback(cluster.shutdown)
    cluster.add_node(**node)
    halves = [stack.enter_context(half()) for _ in range(2)]
    pool = stack.enter_context(RayPool(1, address=cluster.address, format="json", timeout=120.0))
    prepare(pool)
    return {
        "two maps, one worker each": lambda rows: [*map(finish, [begin(each, rows // 2) for each in halves])],
        "map on two nodes of Ray": lambda rows: on_rows(pool, rows, 2 * AT_ONCE),
    }


def half() -> subprocess.Popen[str]:
    """Return a process that runs `map` with one worker on as many rows as a line says."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    return subprocess.Popen([sys.executable, __file__, "--rounds", "0"], env={**os.environ, "HALF": "1"}, **pipes)


def serve_half() -> None:
    with Pool(1, format="json") as pool:
        prepare(pool)
        for line in sys.stdin:
            on_rows(pool, int(line), AT_ONCE)
            print("done", flush=True)


def begin(process: subprocess.Popen[str], rows: int) -> subprocess.Popen[str]:
    assert process.stdin is not None
    process.stdin.write(f"{rows}\n")
    return process


def finish(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"


def prepare(workers: Any) -> None:
    workers.call("configure_lm", MODEL, timeout=120)
    workers.call("create_program", {"id": "program", "signature": SIGNATURE}, timeout=120)


def on_rows(pool: Pool, rows: int, at_once: int) -> None:
    """Do what `map` does."""
    runs = Runs(
        pool, data_set_map.Runs(None, []), Limits(at_once, batch=MOST_IN_A_CALL, width=AT_ONCE // CALLS_PER_WORKER)
    )
    line = json.dumps(INPUTS).encode()
    with tempfile.TemporaryFile() as file:
        done = 0
        for outcomes in runs.outcomes(Row(index, line) for index in range(rows)):
            lines = [json.dumps({"row": row.index, **result}) + "\n" for row, result, _ in outcomes]
            file.write("".join(lines).encode())
            done += len(outcomes)
    assert done == rows


def in_batches(pool: Pool, rows: int) -> None:
    """Do the same with a call for each hundred rows."""
    open_calls: deque[Any] = deque()
    for start in range(0, rows, CHUNK):
        if len(open_calls) == 2:
            open_calls.popleft().result()
        open_calls.append(batch(pool, min(CHUNK, rows - start)))
    for call in open_calls:
        call.result()


def batch(workers: Any, rows: int) -> Any:
    args = {"program_id": "program", "inputs": [INPUTS] * rows, "threads": AT_ONCE, "include": ["cost"]}
    return workers.submit("execute_batch", args)


def memory(counts: tuple[int, ...]) -> dict[int, float]:
    """Print and return the memory of the command `map` by the number of rows, in MiB."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        program, rows, out = (Path(folder, name) for name in ("program.json", "rows.jsonl", "out.jsonl"))
        program.write_text(json.dumps({"program": {"signature": SIGNATURE}, "models": [MODEL]}))
        for count in counts:
            out.unlink(missing_ok=True)
            rows.write_text((json.dumps(INPUTS) + "\n") * count)
            command = [sys.executable, "-m", "bridge", "map", str(program), str(rows), "--out", str(out)]
            with subprocess.Popen([*command, "--workers", "1", "--ordered"], stderr=subprocess.DEVNULL) as process:
                most = 0.0
                while process.poll() is None:
                    most = max(most, peak(process.pid))
                    time.sleep(0.2)
            found[count] = most
            print(f"map of {count} rows: at most {most:.1f} MiB", flush=True)
    return found


def peak(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return 0.0


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all that come from it, as far as they run still."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for pid, parent, used in processes():
        children.setdefault(parent, []).append(pid)
        ticks[pid] = used
    found, waiting = 0, [os.getpid()]
    while waiting:
        pid = waiting.pop()
        found += ticks.get(pid, 0)
        waiting += children.get(pid, [])
    return found / TICKS


def processes() -> Iterator[tuple[int, int, int]]:
    """Yield the id, the parent and the CPU time, in ticks, of each process."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        yield int(path.parent.name), int(fields[1]), int(fields[11]) + int(fields[12])


if __name__ == "__main__":
    serve_half() if os.environ.get("HALF") else main()
