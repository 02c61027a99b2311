"""Measure a call of libbridge: a ping in the host's process, on one thread and on eight, and a request of 64 MiB.

Baselines are a bare call of a Python function, and a ping over a pipe. Needs CMake; the host is
`c/embed.c`, and over the pipe `c/host.c`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from roundtrip import BRIDGE, PING, compile_c

ROOT = Path(__file__).parent.parent
ROUNDS = 21
TARGET = 2000  # ns that a ping may take longer than the bare call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run("cmake", "-S", ROOT, "-B", folder, f"-DPython_EXECUTABLE={sys.executable}")
        run("cmake", "--build", folder, "--target", "embed_benchmark")
        program = Path(folder) / "embed_benchmark"
        ns = json.loads(run("taskset", "-c", "0", program, sys.executable, ROUNDS))
        unpinned = json.loads(run(program, sys.executable, ROUNDS))
        for name in ("ping_8_threads", "64_MiB", "64_MiB_copied"):
            ns[name] = unpinned[name]
        ns["ping_over_a_pipe"] = over_a_pipe(compile_c("host", folder))
    for name, figure in ns.items():
        print(f"{name:24}{figure / 1000:12.2f} us")
    over = ns["ping"] - ns["bare_call"]
    verdict = "reached" if over <= TARGET else "missed"
    print(f"\nping over the bare call: {over / 1000:.2f} us, target {TARGET / 1000:g}: {verdict}")
    if options.json:
        Path(options.json).write_text(json.dumps({"ns": ns}, indent=1))


def over_a_pipe(host: str) -> float:
    """Return the ns of a ping in JSON, with host and worker on one core."""
    request = json.dumps(PING).encode()
    command = [host, "calls", "-n5000", "-p0,0", "-e", "success", *BRIDGE]
    rounds = [
        json.loads(subprocess.run(command, input=request, capture_output=True, check=True).stdout) for _ in range(5)
    ]
    return statistics.median(each["p50_us"] for each in rounds) * 1000


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return done.stdout


if __name__ == "__main__":
    main()
