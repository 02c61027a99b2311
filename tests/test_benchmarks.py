"""The benchmarks that compare builds: each way to call answers a task, and each command shows its help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
TYPES = ["predict", "chain_of_thought", "react", "best_of_n", "refine", "majority", "multi_chain_comparison"]
SCRIPTED = {"provider": "scripted", "answers": {"": {"answer": "Paris"}}}


def run(name: str, *arguments: str, tasks: str = "") -> list[str]:
    command = [sys.executable, str(FOLDER / name), *arguments]
    return subprocess.run(command, input=tasks, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("kind", ["bridge", "submit", "aio", "pipe", "connection", "processes", "threads"])
def test_a_way_to_call_has_figures_for_one_call_at_a_time_and_for_several(kind: str) -> None:
    """Pins that a host process of the benchmarks runs with this build, with and without a payload."""
    tasks = [
        {"command": "ping", "size": 0, "width": 1, "calls": 2},
        {"command": "echo_decoded", "size": 1 << 16, "width": 16, "calls": 32},
    ]
    has, *figures = map(json.loads, run("client_host.py", kind, tasks="\n".join(map(json.dumps, tasks))))
    assert has == {"has": True}
    assert [row["us"] > 0 and row["cpu_us"] > 0 for row in figures] == [True, True]


@pytest.mark.parametrize("kind", ["bridge", "aio", "pipe", "first_chunk", "dspy"])
def test_a_way_to_run_a_program_has_figures(kind: str) -> None:
    """Pins that a host process of the benchmarks runs a program, or DSPy itself."""
    task = json.dumps({"command": "execute_program", "size": 0, "width": 1, "calls": 1})
    _, figures = map(json.loads, run("client_host.py", kind, json.dumps(SCRIPTED), tasks=task))
    assert figures["p50_us"] > 0


@pytest.mark.parametrize("kind", ["bridge", "dspy"])
@pytest.mark.parametrize("program_type", TYPES)
def test_each_program_type_has_figures(program_type: str, kind: str) -> None:
    """Pins that the bridge and DSPy run a program of each type."""
    task = json.dumps({"command": "execute_program", "size": 0, "width": 1, "calls": 1})
    fields = {"answer": "Paris", "reasoning": "So.", "rationale": "So.", "next_thought": "So."}
    fields |= {"next_tool_name": "finish", "next_tool_args": {}}
    model = {"provider": "scripted", "answers": {"": fields}, "program": {"program_type": program_type}}
    _, figures = map(json.loads, run("client_host.py", kind, json.dumps(model), tasks=task))
    assert figures["p50_us"] > 0


@pytest.mark.parametrize(
    "name", ["builds.py", "client.py", "dspy_calls.py", "map.py", "pool.py", "postgres.py", "programs.py", "scaling.py"]
)
def test_a_comparison_shows_its_sections(name: str) -> None:
    """Pins that the command's modules can be imported."""
    assert any("--only" in line for line in run(name, "--help"))
