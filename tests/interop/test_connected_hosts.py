"""The example hosts that connect to a socket: each gets a worker of its own from one template."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving import Served

EXAMPLES = Path(__file__).parents[2] / "examples"
ANSWER = "21 degrees"


@pytest.fixture(scope="module")
def served():
    served = Served(adapter="dspy")
    yield served
    served.finish()


def run(served, command, **environment):
    """Return what a host prints. It has to find its answer."""
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "BRIDGE_SOCKET": served.path, **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def conversation(output):
    """Return the messages that a host has received, without what differs from worker to worker."""
    messages = [json.loads(line) for line in output.splitlines()]
    for message in messages:
        message.pop("timestamp", None)
        for varying in ("execution_time", "pid"):
            (message.get("result") or {}).pop(varying, None)
    assert ANSWER in messages[-1]["result"]["outputs"]["answer"]
    return messages


def compiled_c(folder):
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = folder / "connecting"
    flags = ["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    subprocess.run([compiler, *flags, "-o", program, EXAMPLES / "c/connecting.c"], check=True, timeout=100)
    return [program]


def with_node(folder):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    return [node, EXAMPLES / "node/host.js"]


def compiled_go(folder):
    go = shutil.which("go")
    if go is None:
        pytest.skip("Go is not installed")
    program = folder / "connecting"
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local"}
    command = [go, "build", "-o", program, EXAMPLES / "go/connecting.go"]
    subprocess.run(command, check=True, timeout=100, env=environment)
    return [program]


@pytest.mark.parametrize("build", [compiled_c, with_node, compiled_go])
def test_hosts_in_other_languages(served, tmp_path, build):
    """Events, calls of their tool, replies; the worker ends with the connection."""
    messages = conversation(run(served, build(tmp_path)))
    assert messages[0]["result"]["accepted"] == ["tools"]
    assert any(message.get("command") == "call_tool" for message in messages)
    assert any(message.get("event") == "chunk" for message in messages)
    started = served.message("worker_started")
    ended = served.message("worker_exited", pid=started["pid"])
    assert (ended["exit_status"], ended["stderr"]) == (0, "")


def test_a_host_in_python(served):
    """The last line is the answer."""
    *events, answer = run(served, [sys.executable, EXAMPLES / "python/connecting.py"]).splitlines()
    assert ANSWER in answer
    assert any(line.startswith("chunk ") for line in events)


@pytest.mark.parametrize("build", [compiled_c, with_node, compiled_go])
def test_a_host_whose_socket_is_missing_says_so(tmp_path, build):
    """Its exit status tells, too."""
    environment = {**os.environ, "BRIDGE_SOCKET": str(tmp_path / "nowhere")}
    done = subprocess.run(list(map(str, build(tmp_path))), capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 1
    assert "nowhere" in done.stderr
