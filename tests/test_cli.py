"""The command line: its first minute, its errors."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from bridge import __version__


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_help_and_version():
    """Each command is named."""
    assert {"worker", "demo", "bench"} <= set(run("--help").stdout.split())
    assert run("--version").stdout.strip() == f"dspex-bridge {__version__}"
    assert "--adapter" in run("worker", "--help").stdout
    assert "--quick" in run("bench", "--help").stdout


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("worker", "--mode", "x"),
        ("worker", "--fds", "3"),
        ("worker", "--fds", "77,78"),
        ("worker", "--threads", "0"),
        ("worker", "--max-frame", "x"),
        ("worker", "--grace", "x"),
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    """And says what is wrong, without a traceback."""
    result = run(*arguments, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert "usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_worker_on_a_terminal_says_what_it_is():
    """Who types the command by hand is told, and pointed to the demo."""
    main, terminal = pty.openpty()
    try:
        result = run("worker", stdin=terminal)
    finally:
        os.close(main)
        os.close(terminal)
    assert result.returncode == 2
    assert "bridge demo" in result.stderr


def test_the_demo_shows_answers_timings_and_statistics():
    """With the offline reader where no key is in the environment."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    result = run("demo", env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for expected in ("Alexander Fleming", "offline/reader", "execute_program", "p99", "MiB"):
        assert expected in result.stdout


def test_the_demo_talks_to_a_provider_of_ones_own():
    """--model and --api-base: real HTTP."""
    from openai_server import OpenAIServer, fields

    with OpenAIServer(lambda prompt: fields(answer="forty-two", score="0.5")) as server:
        result = run("demo", "--model", "openai/mine", "--api-base", server.url)
    assert result.returncode == 0, result.stderr
    assert "forty-two" in result.stdout
    assert "openai/mine" in result.stdout


def test_the_demo_says_why_it_failed():
    """One line, exit status 1."""
    result = run("demo", "--model", "openai/mine", "--api-base", "http://127.0.0.1:9/v1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("demo: lm_error: ")
    assert "Traceback" not in result.stderr.splitlines()[-1]
