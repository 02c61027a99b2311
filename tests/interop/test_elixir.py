"""A real BEAM as the host. Runs where elixir is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from peer import is_running, wait_until

elixir = shutil.which("elixir")
pytestmark = pytest.mark.skipif(elixir is None, reason="Elixir is not installed")

# A host that opens a worker on descriptors 3 and 4, tells its pid, and stays.
NOUSE_STDIO = """
[python] = System.argv()
port = Port.open({:spawn_executable, python}, [:binary, :exit_status, :nouse_stdio, {:packet, 4},
  {:args, ["-P", "-m", "bridge", "worker", "--adapter", "echo", "--fds", "3,4"]}])
Port.command(port, ~s({"id": 1, "command": "ping", "args": {"initialization": true}}))
receive do {^port, {:data, reply}} -> true = reply =~ ~s("status":"ok") end
{:os_pid, pid} = Port.info(port, :os_pid)
IO.puts(pid)
IO.gets("")
"""


def run_elixir(*arguments: str) -> str:
    result = subprocess.run(
        [elixir, *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "BRIDGE_PYTHON": sys.executable, "ELIXIR_ERL_OPTIONS": "+fnu"},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_runs(repository):
    """An Elixir script configures, creates, executes and shuts down over a port."""
    output = run_elixir(str(repository / "examples" / "elixir" / "question.exs"))
    assert output.splitlines() == ["answer: Danube", "worker ended"]


def test_descriptors_3_and_4_and_the_end_of_the_beam(tmp_path):
    """:nouse_stdio works; kill -9 of the BEAM ends the worker."""
    script = tmp_path / "host.exs"
    script.write_text(NOUSE_STDIO)
    host = subprocess.Popen(
        [elixir, str(script), sys.executable],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "ELIXIR_ERL_OPTIONS": "+fnu"},
    )
    worker = int(host.stdout.readline())
    assert is_running(worker)
    host.kill()
    host.wait()
    wait_until(lambda: not is_running(worker), 10)
    host.stdin.close()
    host.stdout.close()
