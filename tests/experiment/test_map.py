"""The command map: rows, results and errors of a data set."""

from __future__ import annotations

import gzip
import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest

from data_sets import ROW, SIGNATURE, results, run_map, start_map, write_program, write_rows


@pytest.fixture
def program(tmp_path):
    return lambda **changes: write_program(tmp_path / "program.json", **changes)


def test_each_row_has_a_result(program, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ROW] * 40)
    done = run_map(program(), rows, "--out", tmp_path / "out.jsonl", "--ordered", workers=2)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "map: 40 rows, 0 failed\n"
    assert list(results(tmp_path / "out.jsonl").items()) == [
        (i, {"outputs": {"answer": "Salzburg"}}) for i in range(40)
    ]


def test_what_is_no_row_of_the_program_has_an_error(program, tmp_path):
    """All kinds of bad rows, between good ones."""
    lines = [
        json.dumps(ROW).encode(),
        b'{"question": ',
        b"[1, 2]",
        b'{"question": "Where?"}',
        json.dumps({**ROW, "colour": "red"}).encode(),
        b'{"question": "\xff"}',
        b'{"question": NaN, "passage": ""}',
        b"[" * 100_000,
        json.dumps({**ROW, "question": ["\ud800"]}).encode(),
        json.dumps({"inputs": ROW, "outputs": {"answer": "Rome"}}).encode(),
        json.dumps(
            {**ROW, "passage": "Ünïcode \U0001f3bb \u2028 Mozart was born in Zürich."}, ensure_ascii=False
        ).encode(),
    ]
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\r\n\r\n  \n".join(lines))
    done = run_map(program(), tmp_path / "rows.jsonl", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 3, done.stderr
    assert done.stderr == "map: 11 rows, 8 failed\n"
    found = results(tmp_path / "out.jsonl")
    assert {row for row in found if "error" in found[row]} == set(range(1, 9))
    assert {found[row]["error"]["code"] for row in range(1, 9)} == {"invalid_args"}
    assert "passage" in found[3]["error"]["message"]
    assert "colour" in found[4]["error"]["message"]
    assert {each["error"]["details"]["path"] for each in (found[3], found[4])} == {"row.passage", "row.colour"}
    assert found[10]["outputs"] == {"answer": "Zürich"}


def test_an_exported_program_runs_on_the_model_of_the_command_line(program, tmp_path):
    """Rows and results may be pipes; a row may have an id."""
    fields = [{"prefix": f"{name}:", "description": ""} for name in ("Question", "Passage", "Answer")]
    export = {
        **{"traces": [], "train": [], "demos": [], "lm": None},
        "signature": {"instructions": "Answer.", "fields": fields},
        "metadata": {"bridge": {"version": 1, "program_type": "predict", "signature": SIGNATURE}},
    }
    path = tmp_path / "exported.json"
    path.write_text(json.dumps(export))
    rows = "".join(json.dumps({"name": f"n{index}", **ROW}) + "\n" for index in range(3))
    done = run_map(path, "-", "--out", "-", "--model", "offline", "--id", "name", "--ordered", input=rows)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines == [{"row": i, "id": f"n{i}", "outputs": {"answer": "Salzburg"}} for i in range(3)]


def test_compressed_rows_are_read(program, tmp_path):
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write((json.dumps(ROW) + "\n") * 3)
    done = run_map(program(), tmp_path / "rows.jsonl.gz", "--out", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    assert len(results(tmp_path / "out.jsonl")) == 3


def test_without_rows_no_worker_is_started(program, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n")
    done = run_map(program(models=[{"provider": "magic"}]), tmp_path / "rows.jsonl", "--out", tmp_path / "out.jsonl")
    assert (done.returncode, done.stderr) == (0, "map: 0 rows, 0 failed\n")
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_the_example_of_the_page_is_what_the_command_prints(repository, tmp_path):
    page = (repository / "docs" / "experiments.md").read_text()
    [block] = re.findall(r"^```console\n(.*?)^```", page, re.M | re.S)
    shutil.copytree(repository / "examples" / "experiments", tmp_path, dirs_exist_ok=True)
    for example in block.removeprefix("$ ").split("\n$ "):
        line, _, output = example.partition("\n")
        line = line.replace("dspex-bridge", f"{sys.executable} -m bridge")
        done = subprocess.run(line, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        assert (done.stdout + done.stderr).strip() == output.strip()


def test_results_may_go_to_a_reader_that_goes_away(program, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", [ROW] * 3000)
    reader, writer = os.pipe()
    with start_map(program(), rows, "--out", "-", stdout=writer) as process:
        os.close(writer)
        assert os.read(reader, 10)
        os.close(reader)
        error = process.communicate(timeout=120)[1]
    assert (process.returncode, error) == (1, "map: stdout: nobody reads it any more\n")


def test_a_full_disk_is_an_error_after_which_the_run_can_be_continued(program, tmp_path):
    rows, out = write_rows(tmp_path / "rows.jsonl", [ROW] * 100), tmp_path / "out.jsonl"
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))}
    done = run_map(program(), rows, "--out", out, **limit)
    assert (done.returncode, done.stderr) == (1, f"map: {out}: File too large\n")
    assert 0 < len(results(out)) < 100
    assert out.read_bytes().endswith(b"\n")
    assert run_map(program(), rows, "--out", out).returncode == 0
    assert len(results(out)) == 100


def test_results_wait_for_the_reader_of_a_pipe(program, tmp_path):
    rows, out = write_rows(tmp_path / "rows.jsonl", [ROW] * 3), tmp_path / "out"
    os.mkfifo(out)
    with start_map(program(), rows, "--out", out) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
        assert len(results(out)) == 3
        assert process.wait(60) == 0


def test_results_behind_a_link_may_be_read_by_the_same_users_as_before(program, tmp_path):
    rows, out = write_rows(tmp_path / "rows.jsonl", [ROW] * 100), tmp_path / "out.jsonl"
    out.touch(0o600)
    (tmp_path / "link").symlink_to("out.jsonl")
    assert run_map(program(), rows, "--out", tmp_path / "link", "--ordered").returncode == 0
    assert list(results(out)) == list(range(100))
    assert out.stat().st_mode & 0o777 == 0o600
    assert run_map(program(), rows, "--out", out).returncode == 0
    assert {each.name for each in tmp_path.iterdir()} == {
        "program.json", "rows.jsonl", "link", "out.jsonl", "out.jsonl.job"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.json", "rows.jsonl", "--out", "o"), "none.json: No such file or directory"),
        (("program.json", "none.jsonl", "--out", "o"), "none.jsonl: No such file or directory"),
        (("program.json", ".", "--out", "o"), ".: Is a directory"),
        (("program.json", "rows.jsonl", "--out", "none/o"), "none/o: No such file or directory"),
        (("program.json", "rows.jsonl", "--out", "."), ".: Is a directory"),
        (("program.json", "rows.jsonl", "--out", "rows.jsonl"), "there is no rows.jsonl.job"),
        (("rows.jsonl", "rows.jsonl", "--out", "o"), "rows.jsonl: not JSON"),
        (("program.json", "rows.jsonl", "--out", "o", "--workers", "0"), "'0' is not a positive whole number"),
        (("--ray", "program.json", "rows.jsonl", "--out", "o"), "'program.json' is not HOST:PORT"),
    ],
)
def test_what_is_wrong_with_the_command_line_is_said_before_a_worker_starts(program, tmp_path, arguments, message):
    program(models=[{"provider": "magic"}])
    rows = write_rows(tmp_path / "rows.jsonl", [ROW, ROW])
    done = run_map(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert rows.read_text() == (json.dumps(ROW) + "\n") * 2
