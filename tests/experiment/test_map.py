"""The command map: rows, results and errors of a data set."""

from __future__ import annotations

import gzip
import json

import pytest

from data_sets import ROW, SIGNATURE, results, run_map, write_program, write_rows


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
