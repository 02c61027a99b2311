"""The commands evaluate and optimize of the command line."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest

from learner import ROWS, SIGNATURE, Learner
from model_server import ModelServer


def run(*arguments, **options):
    command = [sys.executable, "-m", "bridge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def experiment(tmp_path, repository):
    """Return a copy of the example, which a test may change: a function that writes it with other keys."""
    for name in ("train.jsonl", "dev.jsonl"):
        shutil.copy(repository / "examples" / "experiments" / name, tmp_path)
    document = json.loads((repository / "examples" / "experiments" / "museums.json").read_text())

    def write(**changes):
        path = tmp_path / "experiment.json"
        path.write_text(json.dumps({**document, **changes}))
        return path

    return write


def test_the_example_is_evaluated(experiment):
    done = run("evaluate", experiment())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("score 1.000 on 4 examples")


def test_the_rows_with_the_lowest_scores_are_shown(experiment):
    answers = {"Munch": {"reasoning": "", "answer": "Oslo"}, "": {"reasoning": "", "answer": "Rome"}}
    done = run("evaluate", experiment(models=[{"provider": "scripted", "answers": answers}]))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("score 0.250 on 4 examples\n")
    assert '{"answer": "Zurich"}' in done.stdout
    assert '"answer": "Rome"' in done.stdout
    assert "Oslo" not in done.stdout


def test_an_optimized_program_can_be_evaluated(experiment, tmp_path):
    """What --out writes is a program for `path`."""
    with Learner() as learner:
        program = {"signature": SIGNATURE}
        options = {"program": program, "models": [learner.settings()], "trainset": ROWS, "devset": ROWS, "valset": None}
        before = run("evaluate", experiment(**options))
        optimizer = {"optimizer": "copro", "options": {}}
        done = run("optimize", experiment(**options, **optimizer), "--out", tmp_path / "better.json")
        options["program"] = {"path": "better.json"}
        after = run("evaluate", experiment(**options), "--json")
    assert before.stdout.startswith("score 0.000 on 5 examples")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *("score 0.000 -> 1.000 (+1.000)", "", "predictor self", "  - Answer.", "  + Name the city."),
    ]
    assert json.loads(after.stdout)["score"] == 1.0


def test_json_is_the_whole_result(experiment):
    done = run("optimize", experiment(), "--json")
    assert done.returncode == 0, done.stderr
    assert {"program_id", "score_before", "score", "changes", "document"} <= json.loads(done.stdout).keys()


def test_a_score_that_is_too_low_has_a_status_of_its_own(experiment):
    scripted = {"provider": "scripted", "answers": {"": {"reasoning": "", "answer": "Rome"}}}
    done = run("evaluate", experiment(models=[scripted]), "--least", "0.5")
    assert done.returncode == 3
    assert done.stderr == "evaluate: the score 0.000 is lower than 0.5\n"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "unknown field `epochs`"),
        ({"trainset": "other.jsonl"}, "other.jsonl: No such file or directory"),
        ({"trainset": None}, "optimize needs trainset"),
        ({"optimizer": None}, "optimize needs optimizer"),
        ({"optimizer": "magic"}, "invalid_args: args.optimizer: unknown optimizer 'magic'"),
        ({"options": {"n": 3}}, "invalid_args: args.options: unknown: n"),
        ({"program": {"path": "other.json"}}, "other.json: No such file or directory"),
        ({"models": [{"provider": "magic"}]}, "invalid_args: args.model"),
    ],
)
def test_what_is_wrong_in_a_document_is_said_in_one_line(experiment, changes, message):
    done = run("optimize", experiment(**changes))
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("optimize: ")
    assert message in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "Expected `object`"),
        ("\xff", "not UTF-8"),
        ('{"program": {"a": "\xff"}, "devset": "dev.jsonl"}', "not UTF-8"),
        ('{"program": {"a": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_no_document_is_refused(tmp_path, text, message):
    path = tmp_path / "experiment.json"
    path.write_bytes(text.encode("latin-1"))
    done = run("evaluate", path)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [(b'{"inputs"', "not JSON"), (b'{"a": "\xff"}', "not UTF-8"), (b"[" * 100_000, "nested too deeply")],
)
def test_a_line_that_is_no_example_is_named(experiment, tmp_path, line, message):
    (tmp_path / "dev.jsonl").write_bytes(b'{"inputs": {}}\n\n' + line + b"\n")
    done = run("evaluate", experiment())
    assert done.returncode == 2
    assert f"dev.jsonl, line 3: {message}" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_error_of_the_model_is_said_in_one_line(experiment):
    with ModelServer(lambda body: (401, {}, {"error": {"message": "wrong key"}})) as server:
        settings = {"model": "openai/x", "api_base": f"{server.url}/v1", "api_key": "sk-x"}
        done = run("optimize", experiment(models=[settings]))
    assert done.returncode == 1
    assert done.stderr.startswith("optimize: lm_error: ")
    assert "wrong key" in done.stderr


@pytest.mark.parametrize(
    ("out", "message"),
    [("none/better.json", "better.json: there is no such folder"), ("", "not a file"), ("/dev/null", "not a file")],
)
def test_a_place_that_cannot_be_written_is_noticed_before_the_work(experiment, tmp_path, out, message):
    done = run("optimize", experiment(models=[{"provider": "nonsense"}]), "--out", out, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_result_that_cannot_be_written_is_an_error(experiment):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "bridge", "evaluate", experiment()]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "evaluate: the result cannot be written: No space left on device\n")


@pytest.mark.parametrize("rich", [True, False])
def test_a_terminal_shows_how_far_it_is(experiment, tmp_path, rich):
    """It is a bar, or lines if rich is not installed."""
    (tmp_path / "rich.py").write_text("raise ImportError")
    environment = {**os.environ, **({} if rich else {"PYTHONPATH": str(tmp_path)})}
    shown, done = on_a_terminal("optimize", experiment(), env=environment)
    assert done.returncode == 0, shown
    assert re.search(r"4/4.*result score 1.000 best 1.000", shown.replace("\r", "\n"))
    assert ("\x1b[" in shown) is rich


def test_ctrl_c_cancels_the_work(experiment):
    """The worker ends, and nothing but a line is printed."""
    asked, go_on = threading.Event(), threading.Event()

    def respond(body):
        asked.set()
        go_on.wait(60)
        return None

    with ModelServer(respond) as server:
        settings = {"model": "openai/x", "api_base": f"{server.url}/v1", "api_key": "sk-x"}
        command = [sys.executable, "-m", "bridge", "optimize", str(experiment(models=[settings]))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
        with subprocess.Popen(command, **pipes) as process:
            assert asked.wait(60)
            os.killpg(process.pid, signal.SIGINT)
            output, error = process.communicate(timeout=60)
        go_on.set()
    assert (process.returncode, output, error) == (130, "", "optimize: cancelled\n")


def on_a_terminal(*arguments, env):
    """Return what the command shows on a terminal, and the finished process."""
    main, terminal = pty.openpty()
    command = [sys.executable, "-m", "bridge", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal, env=env) as process:
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(main, 4096)
            except OSError:  # the process has ended
                break
    os.close(main)
    return shown.decode(), process
