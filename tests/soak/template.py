"""Use a template for a long time, and report what stays behind: python tests/soak/template.py --forks 100000

The short forms of these runs are in tests/template/. Every line is a count or a comparison of the state before and
after; the exit status is 1 if something was left or a connection got no answer.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

from serving import Served  # found through the line above

PAGE = os.sysconf("SC_PAGESIZE")


def state(pid: int) -> dict[str, int]:
    """Return the descriptors, the children that are zombies, and the KiB of memory of a process."""
    with open(f"/proc/{pid}/statm") as file:
        resident = int(file.read().split()[1]) * PAGE // 1024
    zombies = 0
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as file:
                status, parent = file.read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        zombies += status == "Z" and int(parent) == pid
    return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "zombies": zombies, "KiB": resident}


def use_workers(served: Served, count: int) -> int:
    """Connect, call and close, one after the other. Return how many connections got no right answer."""
    wrong = 0
    for number in range(count):
        host = served.connect()
        reply = host.call("ping", request_id=number)
        wrong += reply["id"] != number or not reply["success"]
        host.close()
        served.connections.clear()
        served.message("worker_started")
    for _ in range(count):
        wrong += served.message("worker_exited")["exit_status"] != 0
    return wrong


def be_silent(served: Served, count: int) -> int:
    """Connect and say nothing, 200 at a time. Return how many workers that has started."""
    for _ in range(count // 200):
        peers = [socket.socket(socket.AF_UNIX) for _ in range(200)]
        for peer in peers:
            peer.connect(served.path)
        for peer in peers:
            peer.close()
    served.worker()
    served.message("worker_started")
    return sum(message["type"] == "worker_started" for message in served.messages)


def main() -> int:
    """Run, and return the exit status."""
    parser = argparse.ArgumentParser(description="Use a template for a long time.")
    parser.add_argument("--forks", type=int, default=100_000)
    parser.add_argument("--silent", type=int, default=10_000)
    parser.add_argument("--adapter", default="echo")
    arguments = parser.parse_args()
    served = Served(adapter=arguments.adapter)
    try:
        use_workers(served, 100)
        before, started = state(served.pid), time.monotonic()
        wrong = 0
        for done in range(0, arguments.forks, 1000):
            wrong += use_workers(served, min(1000, arguments.forks - done))
            print(f"{done + 1000} forks, {wrong} wrong answers: {state(served.pid)}", flush=True)
        needless = be_silent(served, arguments.silent)
        served.connections.pop().close()
        served.message("worker_exited")
        after = state(served.pid)
        print(f"before {before}\nafter  {after} ({time.monotonic() - started:.0f} s)")
        print(f"{arguments.forks} forks: {wrong} wrong answers")
        print(f"{arguments.silent} silent connections: {needless} workers started for them")
        grown = after["KiB"] - before["KiB"] > 1024
        is_same = (after["descriptors"], after["zombies"]) == (before["descriptors"], before["zombies"])
        return int(bool(wrong or needless or grown or not is_same))
    finally:
        served.finish()


if __name__ == "__main__":
    sys.exit(main())
