"""The documents: their examples run, their tables are complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import framing_spec
from bridge import Dispatcher, errors
from bridge.adapters.dspy import adapter
from bridge.adapters.echo import adapter as echo

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(language: str) -> list:
    """Return the code blocks of that language in all documents."""
    return [
        pytest.param(code, id=f"{name}-{index}")
        for name in DOCUMENTS
        for index, code in enumerate(re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), re.M | re.S))
    ]


def contains(actual, expected) -> bool:
    """Return whether everything expected is present; maps may have more keys."""
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            key in actual and contains(actual[key], value) for key, value in expected.items()
        )
    return actual == expected


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code):
    """They run unchanged."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    said = re.findall(r"print\(.*\)\s+# (.*)", code)
    assert result.stdout.splitlines()[: len(said)] == said


@pytest.fixture(scope="module")
def elixir_client(tmp_path_factory) -> Path:
    """Return the compiled Elixir client."""
    build = tmp_path_factory.mktemp("elixir")
    env = {**os.environ, "MIX_ENV": "prod", "MIX_BUILD_PATH": str(build)}
    subprocess.run(["mix", "compile"], cwd=ROOT / "elixir", env=env, check=True)
    return build / "lib" / "dspex_bridge" / "ebin"


@pytest.mark.skipif(shutil.which("mix") is None, reason="Elixir is not installed")
@pytest.mark.parametrize("code", blocks("elixir"))
def test_elixir_blocks_run(code, tmp_path, elixir_client):
    """They run unchanged, with BRIDGE_PYTHON set."""
    script = tmp_path / "block.exs"
    script.write_text(code)
    result = subprocess.run(
        ["elixir", "-pa", str(elixir_client), str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "BRIDGE_PYTHON": sys.executable, "ELIXIR_ERL_OPTIONS": "+fnu"},
    )
    assert result.returncode == 0, result.stderr
    said = re.findall(r"IO\.puts\(.*\) # (.*)", code)
    assert said
    assert result.stdout.splitlines() == said


def test_the_protocols_examples_are_what_a_worker_answers():
    """Each → gets its ←, in one conversation."""
    dispatcher = Dispatcher(adapter)
    text = (ROOT / "docs" / "protocol.md").read_text()
    pairs = re.findall(r"^→ `(.*)`\n← `(.*)`$", text, re.M)
    assert len(pairs) >= 12
    for request, expected in pairs:
        reply = json.loads(dispatcher.call(request.encode(), 60))
        assert contains(reply, json.loads(expected)), (request, reply)


def test_the_protocols_multipart_frame_is_valid():
    """echo returns the args of its envelope and its buffers, byte for byte."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    (block,) = re.findall(r"^```frame\n(.*?)^```", text, re.M | re.S)
    lines = [re.sub(r"00 x (\d+)", lambda m: "00" * int(m[1]), line) for line in block.splitlines()]
    frame = bytes.fromhex("".join(lines))
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    envelope, buffers = framing_spec.parted(frame[4:])
    assert f"`{envelope.decode()}` and the buffers" in text
    assert buffers == [b"ab", b"c"]
    reply, returned = framing_spec.parted(Dispatcher(echo).call(frame[4:]))
    assert json.loads(reply)["result"] == json.loads(envelope)["args"]
    assert returned == buffers


def test_the_protocols_tables_are_complete():
    """They have every code with its category, severity and recovery, and every command and flag of a worker."""
    text = (ROOT / "docs" / "protocol.md").read_text()
    for code, error_class in errors.CODES.items():
        (row,) = re.findall(rf"^\| .*`{code}`.* \|$", text, re.M)
        error = error_class("m")
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[1:3] == [error.category, error.severity]
        assert cells[3].startswith(error.recovery)
    _, _, *rows = text[text.index("| code | category |") :].partition("\n\n")[0].splitlines()
    assert {code for row in rows for code in re.findall(r"`(\w+)`", row.split("|")[1])} == set(errors.CODES)
    dispatcher = Dispatcher(adapter)
    for command in dispatcher.commands:
        assert re.search(rf"^\| .*`{command}`.* \|", text, re.M), command
    for command, least in (("worker", 20), ("serve", 20)):
        usage = subprocess.run([sys.executable, "-m", "bridge", command, "--help"], capture_output=True, text=True)
        flags = set(re.findall(r"--[a-z-]+", usage.stdout)) - {"--help"}
        assert len(flags) > least
        for flag in flags:
            assert re.search(rf"^\| .*`{flag}`.* \|", text, re.M), flag
            assert re.search(rf"^ {{4}}.*[ \[]{flag}[ \]]", text, re.M), flag


@pytest.mark.parametrize(
    "name",
    [
        *DOCUMENTS,
        *("CONTRIBUTING.md", "CHANGELOG.md"),
        *("elixir/README.md", "elixir/guides/getting_started.md", "elixir/guides/cluster.md"),
    ],
)
def test_links_within_the_repository_exist(name):
    """External links are not checked."""
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
        assert "://" in target or (ROOT / name).parent.joinpath(target).exists(), target


def test_make_targets_that_the_documents_name_exist():
    """make demo, make test, and the others."""
    makefile = (ROOT / "Makefile").read_text()
    for name in (*DOCUMENTS, "CONTRIBUTING.md"):
        for target in re.findall(r"^ *make ([a-z]+)", (ROOT / name).read_text(), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables_of_formats_are_those_of_the_run():
    """docs/formats.md shows docs/formats/run.json, a full run, and docs/performance.md a part."""
    from bridge.bench import figures, load, markdown

    report = load(ROOT / "docs" / "formats" / "run.json")
    assert not report.quick
    assert report.options["starts"] >= 9
    text = (ROOT / "docs" / "formats.md").read_text()
    assert markdown.tables(report) in text
    assert figures.machine(report) in text
    performance = (ROOT / "docs" / "performance.md").read_text()
    table = re.search(r"^## Formats$[^|]*((?:\|.*\n)+)", performance, re.M)[1]
    (_, *payloads), _, *rows = map(cells_of, table.splitlines())
    assert len(rows) > 10
    for name, *shown in rows:
        totals = [report.cell(name, payload).total for payload in payloads]
        assert shown == [figures.time(total) if total else "N/A" for total in totals]


def test_every_name_of_dspy_is_in_the_table():
    """A new version of DSPy may have others; each test in the table exists."""
    command = [sys.executable, str(ROOT / "docs" / "dspy_names.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stderr == ""
    assert result.returncode == 0
