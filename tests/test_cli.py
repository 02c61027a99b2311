"""The command line: help, flags, errors, the demo."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from bridge import __version__
from bridge.options import DEFAULTS, TYPES


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "bridge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_help_and_version():
    """The help names each command."""
    assert {"worker", "demo", "bench"} <= set(run("--help").stdout.split())
    assert run("--version").stdout.strip() == f"dspex-bridge {__version__}"
    assert "--adapter" in run("worker", "--help").stdout
    assert "--quick" in run("bench", "--help").stdout


def test_each_option_is_a_flag():
    """The flag has the option's description; a list takes one item at a time."""
    shown = " ".join(run("worker", "--help").stdout.split())
    for option, kind in TYPES.items():
        singular = option.removesuffix("s") if isinstance(getattr(DEFAULTS, option), tuple) else option
        flag = f"--{singular.replace('_', '-')}"
        assert f"{flag} " in shown
        assert kind.__metadata__[-1].description in shown


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("worker", "--nonsense")])
def test_wrong_usage_exits_with_2(arguments):
    """The message explains the mistake, without a traceback."""
    result = run(*arguments, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    assert "usage:" in result.stderr
    assert "Traceback" not in result.stderr


COUNTS = ["--threads", "--queue", "--queue-bytes", "--waiting", "--max-sessions"]
COUNTS += ["--session-programs", "--session-bytes", "--max-frame", "--max-values", "--max-memory", "--max-cpu"]
NO_COUNTS = [
    "",
    "0",
    "-1",
    "x",
    "1.5",
    "1e3",
    "nan",
    "1_0",
    " 5",
    "\u0665",
    "9" * 5000,
    "1" + "0" * 17,
]
SECONDS = ["--grace", "--stuck-after", "--session-ttl", "--queue-target"]
NO_SECONDS = ["", "-1", "x", "nan", "inf", "-inf", "1e9", "9" * 5000]
BAD_VALUES = [
    *((option, value) for option in COUNTS for value in NO_COUNTS),
    *((option, value) for option in SECONDS for value in NO_SECONDS),
    *(("--fds", value) for value in ("", "3", "x,y", "77,78", "-1,1", "0,9" + "9" * 50, "0,1,2")),
    *(("--worker-id", value) for value in ("", "\udcff", "x" * 513)),
    *(("--store", value) for value in ("", "x", "sqlite:", ":x")),
    *((option, "x") for option in ("--mode", "--protocol", "--log-level", "--when-stuck")),
    ("--session-ttl", "0"),
    ("--max-frame", "4095"),
    ("--max-memory", "33554431"),
    ("--max-frame", "1073741825"),
]


@pytest.mark.parametrize("option", sorted({option for option, _ in BAD_VALUES}))
def test_a_bad_value_is_named_with_its_option(option, capsys):
    """The message has the expected form, too."""
    from bridge.cli import main

    for value in [value for bad, value in BAD_VALUES if bad == option]:
        with pytest.raises(SystemExit) as exit:
            main(["worker", f"{option}={value}"])
        assert exit.value.code == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert f"error: argument {option}: " in last
        assert re.search("is not |invalid choice", last), last


def test_options_at_their_bounds_are_accepted():
    """Counts from 1 to 2^53, and any number of seconds."""
    bounds = ["--threads=9007199254740992", "--queue=1", "--grace=0", "--stuck-after=86400"]
    bounds += ["--session-ttl=0.001", "--max-frame=4096", "--worker-id=\u00fc", "--waiting=1"]
    bounds += ["--queue-target=0", "--max-memory=9007199254740992", "--max-cpu=31536000"]
    result = run("worker", "--adapter", "echo", *bounds, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stderr) == (0, "")


ADAPTERS = {
    "": "there is no adapter ''",
    "nope": "there is no adapter 'nope'; known: dspy, echo, or your own as MODULE:ATTRIBUTE",
    "nope:": "there is no adapter",
    ":adapter": "there is no adapter",
    ".echo:adapter": "there is no adapter",
    "no_such_module:adapter": "there is no module 'no_such_module'",
    "bridge.nothing:adapter": "there is no module 'bridge.nothing'",
    "os:adapter": "'os' has no 'adapter'",
    "os:path": "not a bridge.Adapter but of the type 'module'",
    "\udcff:adapter": "there is no module",
    "raising:adapter": "cannot be imported: RuntimeError: two",
    "exiting:adapter": "cannot be imported: SystemExit: 0",
    "broken:adapter": "cannot be imported: SyntaxError",
    "incomplete:adapter": "cannot be imported: ModuleNotFoundError: No module named 'nothing'",
    "double:adapter": "two adapters have a command 'ping'",
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_that_does_not_load_is_one_line(name, tmp_path):
    """The exit status is 2, with --quiet too."""
    (tmp_path / "raising.py").write_text("raise RuntimeError('two\\nlines')")
    (tmp_path / "exiting.py").write_text("raise SystemExit(0)")
    (tmp_path / "broken.py").write_text("def")
    (tmp_path / "incomplete.py").write_text("import nothing")
    (tmp_path / "double.py").write_text(
        "from bridge import Adapter\nadapter = Adapter('double')\nadapter.command('ping')(lambda args, context: {})\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = run("worker", "--quiet", f"--adapter={name}", stdin=subprocess.DEVNULL, env=environment)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("dspex-bridge worker: error: ")
    assert ADAPTERS[name] in line


@pytest.mark.parametrize("place", ["sqlite::memory:", "nothing:x"])
def test_an_unknown_kind_of_store_is_one_line(place):
    """The exit status is 2."""
    result = run("worker", "--adapter", "echo", "--store", place, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("dspex-bridge worker: error: the store ")
    assert place in line


@pytest.mark.parametrize("place", ["no/such/folder/x.db", ".", "text", "\udcff/x.db"])
def test_a_store_that_cannot_be_opened_is_one_line(place, tmp_path):
    """The exit status is 2, with --quiet too."""
    (tmp_path / "text").write_text("no database" * 1000)
    flags = ("--quiet", "--adapter", "echo", "--store", f"sqlite:{tmp_path}/{place}")
    result = run("worker", *flags, stdin=subprocess.DEVNULL)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("dspex-bridge worker: error: the store ")


def test_a_worker_on_a_terminal_prints_a_hint():
    """The hint explains the command, and mentions the demo."""
    main, terminal = pty.openpty()
    try:
        result = run("worker", stdin=terminal)
    finally:
        os.close(main)
        os.close(terminal)
    assert result.returncode == 2
    assert "bridge demo" in result.stderr


def test_the_demo_shows_answers_timings_and_statistics():
    """It uses the offline reader if the environment has no key."""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    result = run("demo", env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for expected in ("Alexander Fleming", "offline/reader", "execute_program", "p99", "MiB"):
        assert expected in result.stdout
    assert "before  #####                 25% of 12 questions right" in result.stdout
    assert "after   ###############       75% of 12 questions right" in result.stdout


def test_the_demo_uses_a_chosen_provider():
    """--model and --api-base, with HTTP on loopback."""
    from openai_server import OpenAIServer, fields

    with OpenAIServer(lambda prompt: fields(answer="forty-two", score="0.5", kind="thing")) as server:
        result = run("demo", "--model", "openai/mine", "--api-base", server.url)
    assert result.returncode == 0, result.stderr
    assert "forty-two" in result.stdout
    assert "openai/mine" in result.stdout


def test_the_demo_prints_why_it_failed():
    """The reason is one line, and the exit status is 1."""
    result = run("demo", "--model", "openai/mine", "--api-base", "http://127.0.0.1:9/v1")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("demo: lm_error: ")
    assert "Traceback" not in result.stderr.splitlines()[-1]
