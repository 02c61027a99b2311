"""The bench command: usage errors, progress, tables, exit statuses."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys

import msgspec
import pytest
from rich.console import Console

from bench_runs import SUPPORT, TINY, synthetic, written
from bridge.bench import BadData, Options, compare, figures, load, payloads, run, terminal
from bridge.bench.page import html as page


def bench(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "bridge", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.json", b"", "the file is empty"),
        ("blank.jsonl", b" \n\n", "the file is empty"),
        ("text.json", b"hello", "not JSON"),
        ("torn.json", b'{"a": [1, 2', "not JSON"),
        ("torn.jsonl", b'{"a": 1}\n{"a": ', "line 2 is not JSON"),
        ("latin.json", b'"\xe9"', "not JSON"),
        ("picture.json", b"\x89PNG\r\n\x1a\n\x00\x00", "not JSON"),
        ("nan.json", b"[NaN]", "not JSON"),
    ],
)
def test_bad_files_are_reported(tmp_path, name, data, words):
    """The message has the name of the file and the problem."""
    path = written(tmp_path, name, data)
    with pytest.raises(BadData, match=f"{re.escape(name)}.*{words}"):
        payloads.from_file(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    """Nothing of two gigabytes is read, and the message explains what to do."""
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    result = bench("--data", str(path))
    assert result.returncode == 2
    assert result.stderr.startswith(f"bench: {path}: 2,147 MB, and a payload is at most 64 MiB")
    assert "head -n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "no/such/file.json"], "no such file"),
        (["--data", "."], "no file in it ends in"),
        (["--formats", "xml"], "unknown format 'xml'; known: json, orjson"),
        (["--payloads", "pong"], "no payload 'pong'; known: ping"),
        (["--format", "bench_formats:not_a_format"], "not a subclass of bridge.bench.Format"),
        (["--format", "bench_formats:nothing"], "AttributeError"),
        (["--format", "no_such_module:x"], "ModuleNotFoundError"),
        (["--compare", "bench_formats.py"], "not a report of this benchmark"),
        (["--load", "none.json"], "No such file"),
        (["--json", "no/such/folder/x.json"], "no such folder"),
        (["--core", "999"], "not one of"),
        (["--formats", "json,json"], "two formats have the name json"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, arguments, words):
    """The exit status is 2, and nothing is measured."""
    shutil.copy(SUPPORT / "bench_formats.py", tmp_path)
    (tmp_path / "folder").mkdir()
    result = bench(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert words in line


def test_without_the_extra_it_says_what_to_type(tmp_path):
    """Without rich, the message is one line with the command to install it."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('no', name='rich')")
    result = bench("--quick", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == "bench needs rich, which is not installed: pip install 'dspex-bridge[bench]'"


def test_without_zstandard_only_its_sizes_are_left_out(tmp_path):
    """Everything else is measured, and a note gives the reason."""
    code = "raise ModuleNotFoundError('no', name='zstandard')"
    (tmp_path / "zstandard.py").write_text(code)
    code = (
        "import sys, importlib.metadata as m; real = m.version\n"
        "def version(name):\n"
        "    if name == 'zstandard': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "from bridge.bench import Options, run\n"
        "from bridge.bench.markdown import tables\n"
        "found = run(Options(starts=1, rounds=1, budget=0.0005, formats=('json',),"
        " payloads=('ping',), beam=False))\n"
        "found.save(sys.argv[1])\n"
        "print(tables(found))\n"
    )
    path = tmp_path / "run.json"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, timeout=60, check=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    found = load(path)
    cell = found.cell("json", "ping")
    assert (cell.reason, cell.zstd) == (None, None)
    assert cell.total > 0
    assert found.notes == ["zstandard is not installed: no sizes after zstd"]
    assert found.machine["zstandard"] == "not installed"
    assert "| json | 54 B |" in done.stdout
    assert page(found)


def test_a_run_that_measured_nothing_fails(tmp_path):
    """It fails after printing its tables, which contain the reasons."""
    shutil.copy(SUPPORT / "bench_formats.py", tmp_path)
    common = ["--quick", "--payloads", "blob", "--formats", "json", "--no-beam"]
    result = bench(*common, cwd=tmp_path)
    assert result.returncode == 1
    assert "N/A json" in result.stdout
    assert "bench: nothing was measured" in result.stderr


def test_progress_ends():
    """The last step is the total, even if formats were left out."""
    told = []
    chosen = {"formats": ("json",), "payloads": ("ping", "blob"), "beam": False}
    options = Options(**{**TINY, "rounds": 9}, **chosen, limit=0.0)
    found = run(options, lambda *step: told.append(step))
    assert found.notes == ["the machine is busy: 3 rounds within the time"]
    assert told[0][:2] == (0, 20)
    assert told[-1] == (20, 20, "done")
    assert told[-2][0] < 19


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (40, ["round trip"]),
        (60, ["bytes", "round trip", "±"]),
        (80, ["bytes", "encode", "decode", "round trip", "±"]),
        (128, list(terminal.COLUMNS)),
    ],
)
def test_tables_fit_the_terminal(report, width, columns):
    """They show whole names and figures, in as many columns as fit."""
    console = Console(width=width, record=True, file=io.StringIO())
    terminal.show(report, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    head = next(line for line in text.splitlines() if "round trip" in line)
    assert re.split(r"\s{2,}|(?<=\w) (?=±)", head.strip()) == columns
    assert "…" not in text
    cell = report.cell("msgspec-msgpack-typed", "rows")
    (line,) = re.findall(rf"msgspec-msgpack-typed.*{re.escape(figures.time(cell.total))}.*", text)
    assert line.split()[1:]


@pytest.mark.parametrize("width", [40, 80])
def test_changes_fit_the_terminal(width):
    """A narrow terminal shows only the ratio."""
    console = Console(width=width, record=True, file=io.StringIO())
    terminal.show_changes(compare(synthetic(1), synthetic(2, f3=2.0)), console)
    text = console.export_text()
    assert "…" not in text
    assert re.search(rf"f3 +p +trip_total .*{figures.TIMES} \d\.\d\d", text)
    assert ("before" in text) == (width == 80)


def test_the_command_measures_writes_and_compares(tmp_path):
    """The user's data and format are measured, all files are written, then a second run is compared with the first."""
    shutil.copy(SUPPORT / "bench_formats.py", tmp_path)
    written(tmp_path, "mine.jsonl", b'{"x": 1}\n{"x": 2, "y": null}\n')
    common = ["--quick", "--data", "mine.jsonl", "--formats", "json,orjson", "--no-beam"]
    first = bench(
        *common, "--format", "bench_formats:Literal",
        "--json", "one.json", "--html", "one.html", "--plots", "plots", cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    for expected in ("mine.jsonl", "2 messages", "orjson", "literal", "A quick run", "round trip"):
        assert expected in first.stdout
    assert (tmp_path / "one.html").read_text().count("<svg") == 2
    assert {path.suffix for path in (tmp_path / "plots").iterdir()} == {".png", ".svg"}
    second = bench("--load", "one.json", "--compare", "one.json", cwd=tmp_path)
    assert second.returncode == 0, second.stderr
    assert re.search(r"\d\d figures compared, of 1 old and 1 new runs: 0 really", second.stdout)


@pytest.mark.parametrize(("runs", "factor", "status"), [(3, 1.5, 3), (3, 0.5, 0), (1, 1.5, 4)])
def test_the_exit_status_says_whether_something_is_slower(report, tmp_path, runs, factor, status):
    """It is 3 if something is slower, 4 if that is unknown, else 0."""
    names = {side: [f"{side}{run}.json" for run in range(runs)] for side in ("old", "new")}
    for side, shift in (("old", 1.0), ("new", factor)):
        for name in names[side]:
            made = synthetic(name, f3=shift)
            facts = {**report.machine, "load_before": [0.0]}
            msgspec.structs.replace(made, machine=facts).save(tmp_path / name)
    done = bench("--load", *names["new"], "--compare", *names["old"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (status, "")
    assert "f3" in done.stdout
