"""Measure RayPool: a call beside Pool and beside a bare call of a Ray actor, large args, and two nodes beside one.

python benchmarks/ray_pool.py [--quick] [--json FILE]

The nodes are processes of this machine, so what a row costs in CPU time is shared by both: rows wait, as for a model.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import ray
from ray.cluster_utils import Cluster

from bridge import Pool, RayPool

NODE = {"num_cpus": 1, "object_store_memory": 200_000_000}
SIZES = (1 << 10, 64 << 10, 1 << 20, 16 << 20)
IN_FLIGHT = 64
ROW_SECONDS = 0.2  # that a row waits, as for a model
ROWS_IN_FLIGHT = 16  # for each node

now = time.perf_counter
Figures = dict[str, float]


class Echo:
    """What a bare actor does."""

    def ping(self) -> dict[str, str]:
        return {"status": "ok"}

    def echo(self, data: bytes) -> bytes:
        return data


def main() -> None:
    """Print the figures, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    figures = measure(rounds=3 if options.quick else 9)
    for name, value in figures.items():
        print(f"{name:52}{value:12.2f}")
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1))


def measure(rounds: int) -> Figures:
    """Return the figures by their names, which end with the unit."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        with RayPool(1, address=cluster.address, adapter="echo") as pool, Pool(1, adapter="echo") as local:
            actor = ray.remote(num_cpus=0)(Echo).remote()
            figures = calls(pool, local, actor, rounds) | sizes(pool, local, actor, rounds)
            return figures | nodes(pool, cluster, rounds)
    finally:
        ray.shutdown()
        cluster.shutdown()


def calls(pool: RayPool, local: Pool, actor: Any, rounds: int) -> Figures:
    """Measure a ping: one call at a time, and several in flight."""
    one: dict[str, Callable[[], Any]] = {
        "Pool": lambda: local.call("ping"),
        "RayPool": lambda: pool.call("ping"),
        "a Ray actor": lambda: ray.get(actor.ping.remote()),
    }
    several: dict[str, Callable[[], Any]] = {
        "Pool": lambda: [call.result() for call in [local.submit("ping") for _ in range(IN_FLIGHT)]],
        "RayPool": lambda: [call.result() for call in [pool.submit("ping") for _ in range(IN_FLIGHT)]],
        "a Ray actor": lambda: ray.get([actor.ping.remote() for _ in range(IN_FLIGHT)]),
    }
    figures = medians("ping, {}, us", one, rounds, 200)
    figures |= {
        name: us / IN_FLIGHT
        for name, us in medians(f"ping, {IN_FLIGHT} in flight, {{}}, us", several, rounds, 10).items()
    }
    for kind in ("ping", f"ping, {IN_FLIGHT} in flight"):
        figures[f"{kind}, RayPool / a Ray actor"] = (
            figures[f"{kind}, RayPool, us"] / figures[f"{kind}, a Ray actor, us"]
        )
    return figures


def sizes(pool: RayPool, local: Pool, actor: Any, rounds: int) -> Figures:
    """Measure bytes that go to a worker, or to an actor, and back."""
    figures: Figures = {}
    for size in SIZES:
        data = os.urandom(size)
        contenders: dict[str, Callable[[], Any]] = {
            "Pool": lambda data=data: local.call("echo", {"data": data}),
            "RayPool": lambda data=data: pool.call("echo", {"data": data}),
            "a Ray actor": lambda data=data: ray.get(actor.echo.remote(data)),
        }
        figures |= medians(f"{size >> 10} KiB and back, {{}}, us", contenders, rounds, 3)
    return figures


def medians(name: str, contenders: dict[str, Callable[[], Any]], rounds: int, times: int) -> Figures:
    """Return the median of rounds, in which the contenders take turns."""
    found: dict[str, list[float]] = {each: [] for each in contenders}
    for _ in range(rounds):
        for each, call in contenders.items():
            call()
            start = now()
            for _ in range(times):
                call()
            found[each].append((now() - start) / times * 1e6)
    return {name.format(each): statistics.median(values) for each, values in found.items()}


def nodes(pool: RayPool, cluster: Cluster, rounds: int) -> Figures:
    """Measure rows a second on one node, on two, and again on one."""
    alone = [rows_a_second(pool, 1) for _ in range(rounds)]
    second = cluster.add_node(**NODE)
    wait(pool, 2)
    together = [rows_a_second(pool, 2) for _ in range(rounds)]
    cluster.remove_node(second)
    wait(pool, 1)
    alone += [rows_a_second(pool, 1) for _ in range(rounds)]
    one, two = statistics.median(alone), statistics.median(together)
    return {"rows, one node, 1/s": one, "rows, two nodes, 1/s": two, "rows, two nodes / 2 x one node": two / (2 * one)}


def rows_a_second(pool: RayPool, count: int) -> float:
    rows = iter(range(10 * ROWS_IN_FLIGHT * count))
    start, in_flight, done = now(), deque[Any](), 0
    while True:
        for _ in islice(rows, count * ROWS_IN_FLIGHT - len(in_flight)):
            in_flight.append(pool.submit("sleep", {"seconds": ROW_SECONDS}))
        if not in_flight:
            return done / (now() - start)
        in_flight.popleft().result()
        done += 1


def wait(pool: RayPool, count: int) -> None:
    while pool.status()["nodes"] != {"ready": count}:
        time.sleep(0.2)


if __name__ == "__main__":
    main()
