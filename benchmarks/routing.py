"""Simulate the sessions of many nodes by the code that chooses the node of a session in a RayPool.

    python benchmarks/routing.py [--sessions 1000000] [--nodes 100] [--events 4] [--seed 1] [--json FILE]

`routing.exs` does the same for a cluster of BEAM nodes, and says what the columns are. Uses all cores; four minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bridge.ray.ring import Ring

FINDS = 5_000
PART = 10_000  # sessions that a process places at a time
Row = dict[str, Any]


class Cluster:
    """The nodes that there are now, and the node of each session."""

    def __init__(self, sessions: int, nodes: int) -> None:
        self._processes = ProcessPoolExecutor(os.cpu_count())
        self._sessions = sessions
        self._named = nodes
        self.nodes = [f"node-{number}" for number in range(nodes)]
        self.owners = self._place()

    def imbalance(self) -> float:
        """Return how many sessions the fullest node has, beside the mean."""
        return max(Counter(self.owners).values()) * len(self.nodes) / self._sessions

    def change(self, kind: str, count: int) -> Row:
        """Let nodes join or be lost, and return what that has moved."""
        before, owners = set(self.nodes), self.owners
        if kind == "join":
            self.nodes = [*self.nodes, *(f"node-{self._named + number}" for number in range(count))]
            self._named += count
        else:
            self.nodes = sorted(before - set(random.sample(self.nodes, count)))
        after = set(self.nodes)
        self.owners = self._place()
        moves = [(old, new) for old, new in zip(owners, self.owners, strict=True) if old != new]
        share = round(self._sessions * count / len(self.nodes))
        return {
            "kind": kind,
            "nodes": len(self.nodes),
            "moved": len(moves),
            "least": share if kind == "join" else sum(owner not in after for owner in owners),
            "astray": sum(old in after and new in before for old, new in moves),
            "imbalance": self.imbalance(),
        }

    def _place(self) -> list[str]:
        parts = self._processes.map(partial(place, self.nodes, self._sessions), range(0, self._sessions, PART))
        return [owner for part in parts for owner in part]


def place(nodes: list[str], sessions: int, first: int) -> list[str]:
    """Return the nodes of the sessions from the first one on."""
    ring = Ring(nodes)
    return [ring.owner(f"session-{number}") for number in range(first, min(first + PART, sessions))]


def find(nodes: int) -> Row:
    """Return how long it takes to choose the node of a new session, in µs, of the nodes that there are then."""
    names = [f"node-{number}" for number in range(nodes)]
    times = []
    for number in random.sample(range(1_000_000), FINDS):
        started = time.perf_counter()
        Ring(names).owner(f"session-{number}")
        times.append((time.perf_counter() - started) * 1e6)
    times.sort()
    return {"nodes": nodes, "p50_us": statistics.median(times), "p99_us": times[-FINDS // 100]}


def show(title: str, row: Row) -> None:
    moved = row.get("moved")
    ratio = "" if moved is None else f"{moved / max(row['least'], 1):.3f}"
    cells = (row["nodes"], moved, row.get("least"), ratio, row.get("astray"), f"{row['imbalance']:.3f}")
    print(f"| {title} | " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--events", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    random.seed(options.seed)
    cluster = Cluster(options.sessions, options.nodes)
    print(f"{options.sessions} sessions, {options.nodes} nodes\n")
    print("| | nodes | moved | least | moved / least | astray | max/mean |\n|---|---|---|---|---|---|---|")
    show("at first", {"nodes": options.nodes, "imbalance": cluster.imbalance()})
    at_random = Counter(random.choices(cluster.nodes, k=options.sessions))
    worst = max(at_random.values()) * options.nodes / options.sessions
    show("on random nodes", {"nodes": options.nodes, "imbalance": worst})
    kinds = ["join", "loss"] * (options.events // 2)
    random.shuffle(kinds)
    rows = [cluster.change(kind, 1) for kind in kinds]
    if rows:
        sums = {column: sum(row[column] for row in rows) for column in ("moved", "least", "astray")}
        worst = max(row["imbalance"] for row in rows)
        show(f"{len(rows)} joins and losses", {"nodes": len(cluster.nodes), **sums, "imbalance": worst})
    for title, kind in (("ten lost at once", "loss"), ("ten join at once", "join")):
        rows.append(cluster.change(kind, 10))
        show(title, rows[-1])
    print("\n| to find one | p50 µs | p99 µs |\n|---|---|---|")
    finds = [find(nodes) for nodes in (3, 10, options.nodes, 1_000)]
    for row in finds:
        print(f"| among {row['nodes']} nodes | {row['p50_us']:.1f} | {row['p99_us']:.1f} |")
    if options.json:
        Path(options.json).write_text(json.dumps({"events": rows, "finds": finds}, indent=1))


if __name__ == "__main__":
    main()
