"""A real BEAM as the host of an agent: its tool, its stream, its cancel."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading

import pytest

from openai_server import OpenAIServer, fields
from peer import wait_until

elixir = shutil.which("elixir")
pytestmark = pytest.mark.skipif(elixir is None, reason="Elixir is not installed")

# Quotes, a backslash and characters past ASCII come through unchanged.
ANSWER = 'It is "21 degrees" in Graz, \\o/ or about 70 °F \U0001f324.'


def agent(prompt):
    """Calls the tool, finishes and answers; takes very long for questions about Vienna."""
    if "Vienna" in prompt:
        return fields(next_thought="word " * 1000, next_tool_name="finish", next_tool_args="{}")
    if "next_tool_name" not in prompt:
        return fields(reasoning="the tool said so", answer=ANSWER)
    if "observation_0" in prompt:
        return fields(next_thought="done", next_tool_name="finish", next_tool_args="{}")
    args = '{"city": "Graz"}'
    return fields(next_thought="ask", next_tool_name="temperature", next_tool_args=args)


def run_example(repository, **variables):
    """Return the lines that the example prints."""
    env = {**os.environ, "ELIXIR_ERL_OPTIONS": "+fnu", "LC_ALL": "C.UTF-8"}
    env.pop("BRIDGE_MODEL", None)
    result = subprocess.run(
        [elixir, str(repository / "examples" / "elixir" / "agent.exs")],
        capture_output=True,
        encoding="utf-8",
        timeout=90,
        env={**env, "BRIDGE_PYTHON": sys.executable, **variables},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_the_example_runs_offline(repository):
    """The tool is called and its result used; the cancelled run has `cancelled` as its reply."""
    assert run_example(repository) == [
        'tool call: temperature %{"city" => "Graz"}',
        'tool result: "It is 21 degrees in Graz."',
        "21 degrees",
        "answer: 21 degrees (2 chunks)",
        "second run: cancelled",
        "worker ended",
    ]


def test_the_example_runs_with_a_model_over_http(repository):
    """The chunks make up the answer, and the cancelled answer is not read to its end."""
    slowly = threading.Event()
    with OpenAIServer(agent) as server:
        server.before_word = lambda index: index < 50 or slowly.wait(0.01)
        lines = run_example(
            repository,
            BRIDGE_MODEL="openai/test",
            BRIDGE_API_BASE=server.url,
            OPENAI_API_KEY="sk-test-123456",
        )
        wait_until(lambda: server.broken >= 1)
    *tool, streamed, answer, second, end = lines
    assert tool == [
        'tool call: temperature %{"city" => "Graz"}',
        'tool result: "It is 21 degrees in Graz."',
    ]
    final = re.fullmatch(r"answer: (.*) \((\d+) chunks\)", answer)
    assert streamed == final[1] == ANSWER
    assert int(final[2]) > 1
    assert (second, end) == ("second run: cancelled", "worker ended")
    prompts = [body["messages"][-1]["content"] for _, body in server.requests]
    assert "It is 21 degrees in Graz." in prompts[1]
    assert ["Vienna" in prompt for prompt in prompts] == [False, False, False, True]
    assert {headers["Authorization"] for headers, _ in server.requests} == {"Bearer sk-test-123456"}
