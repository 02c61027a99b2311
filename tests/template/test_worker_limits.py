"""Limits of workers that a template has forked: each has them for itself, and the template has none."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bridge import Client

MIB = 1 << 20
LIMIT = 128 * MIB


def limits_of(pid):
    """Return the soft limits of a process, as the system writes them."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[0] for line in lines}


def test_a_worker_that_eats_memory_costs_itself_only(serve):
    """Its neighbour and the template have what they had."""
    served = serve("--max-memory", str(LIMIT), adapter="greedy:adapter")
    greedy, pid = served.worker()
    other, _ = served.worker()
    assert greedy.call("eat", {"size": MIB, "times": 1000})["details"] == {"type": "MemoryError"}
    assert other.call("eat", {"size": 32 * MIB})["success"]
    assert greedy.call("forget")["success"]
    assert greedy.call("eat", {"size": 32 * MIB})["success"]
    assert int(limits_of(pid)["Max data size"]) >= LIMIT
    assert limits_of(served.pid)["Max data size"] == "unlimited"


def test_a_worker_that_burns_the_cpu_ends_with_a_reason(serve):
    """The host learns the signal and the last line; others go on, and the next one has its whole time."""
    served = serve("--max-cpu", "1", adapter="greedy:adapter")
    burning, pid = served.worker()
    other, _ = served.worker()
    burning.send({"id": 1, "command": "burn"})
    ended = served.message("worker_exited", pid=pid)
    assert (ended["exit_status"], ended["signal"]) == (None, "SIGXCPU")
    assert ended["stderr"].endswith("dspex-bridge worker: error: it has used its CPU time (--max-cpu 1) and ends")
    assert other.is_alive()
    again, pid = served.worker()
    assert again.call("limits")["result"]["cpu"] == [1, 3]
    assert limits_of(served.pid)["Max cpu time"] == "unlimited"


def test_a_template_whose_workers_could_not_be_limited_does_not_start(tmp_path):
    """Instead of workers that end at once."""
    command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", f"unix:{tmp_path}/s", "--adapter", "dspy"]
    result = subprocess.run([*command, "--max-memory", str(64 * MIB)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("dspex-bridge serve: error: --max-memory 67108864: a worker has ")


def test_the_age_of_a_worker_is_its_own(serve):
    """It is not that of the template. Pools recycle workers by age, calls and memory, which `get_stats` returns."""
    served = serve()
    before = time.monotonic()
    host, pid = served.worker()
    stats = host.call("get_stats", {"include": ["worker", "process"]})["result"]
    assert stats["worker"]["uptime"] <= time.monotonic() - before
    assert (stats["worker"]["pid"], stats["worker"]["calls"]) == (pid, 1)
    assert 0 < stats["process"]["private"] < stats["process"]["rss"]


def test_dspy_runs_within_its_limits(serve):
    """A quarter of a gigabyte is enough for a program."""
    served = serve("--max-memory", str(256 * MIB), "--max-cpu", "60", adapter="dspy")
    with Client.connect(f"unix:{served.path}") as client:
        client.call("configure_lm", {"provider": "offline"})
        signature = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
        client.call("create_program", {"id": "qa", "signature": signature})
        assert client.call("execute_program", {"program_id": "qa", "inputs": {"question": "Who?"}})["outputs"]
