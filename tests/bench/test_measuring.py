"""A run of the benchmark: its figures, its omissions, and its report."""

from __future__ import annotations

import html.parser
import importlib.metadata
import json
import os
import re
import shutil
import time
from pathlib import Path

import msgspec
import pytest

from bench_runs import OWN, SUPPORT, TINY, reason_against
from bridge.bench import Options, Payload, compare, formats, load, measure, payloads, run
from bridge.bench.page import html as page
from bridge.bench.report import Cell, FormatInfo, PayloadInfo, Report


def test_a_run_measures_every_format(report):
    """Every format has all figures or a reason, and the parts of a round trip add up to the whole."""
    names = {info.name for info in report.formats}
    assert names >= {*formats.BUILTIN, *formats.BRIDGE, "literal"}
    for cell in report.cells:
        if cell.reason is not None:
            assert not cell.times
            continue
        assert cell.bytes > 0
        assert cell.total > 0
        parts = [step for step in cell.times if step.startswith("trip_") and step != "trip_total"]
        for index, total in enumerate(cell.times["trip_total"].samples):
            shares = sum(cell.times[step].samples[index] for step in parts)
            assert shares == pytest.approx(total, rel=0.5)
        own = report.formats[[info.name for info in report.formats].index(cell.format)]
        if own.group in ("untyped", "typed"):
            assert {"encode", "decode", "typed"} <= cell.times.keys()
            assert cell.memory >= 0
            assert cell.zstd > 0
        for figure in cell.times.values():
            assert figure.low <= figure.median <= figure.high
            assert len(figure.samples) == 3
    foreign = report.cell("protobuf", "rows")
    assert foreign.median("build") > 0
    assert foreign.median("read") > 0


@pytest.mark.parametrize("name", OWN)
def test_user_formats_are_measured_or_have_a_reason(report, name):
    """A format that raises, refuses, changes data or ends its worker is N/A, and the others are measured."""
    cell = report.cell(name.lower(), "ping")
    assert (cell.reason is None) == (OWN[name] is None)
    assert (OWN[name] or "") in (cell.reason or "")
    if name == "Literal":
        assert cell.bytes == len(repr(payloads.builtin("ping").messages[0]))


def test_a_format_that_hangs_is_given_up(tmp_path, monkeypatch):
    """It is killed together with its worker, and the next format is measured."""
    monkeypatch.setattr(measure, "PATIENCE", 3.0)
    monkeypatch.chdir(tmp_path)
    shutil.copy(SUPPORT / "bench_formats.py", tmp_path)
    chosen = {"formats": ("bench_formats:Hanging", "json"), "payloads": ("ping",)}
    found = run(Options(**TINY, **chosen, beam=False))
    assert found.cell("hanging", "ping").reason == "no answer within 3 s"
    assert found.cell("json", "ping").total > 0
    status = Path("/proc", (tmp_path / "pid").read_text(), "status")
    deadline = time.monotonic() + 10
    while status.exists() and "(zombie)" not in status.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_changed_data_is_never_a_figure():
    """If 3 comes back as 3.0, the pair is N/A with the path."""
    reason = reason_against("bench_formats:Rounding", Payload("numbers", "", [{"a": 3}]))
    assert reason == "comes back changed: $.a: 3 became 3.0"


@pytest.mark.skipif(shutil.which("elixir") is None, reason="Elixir is not installed")
def test_a_beam_is_measured(report):
    """ETF from the BEAM has a round trip; JSON has one, or a reason."""
    assert report.cell("beam-etf", "rows").total > 0
    cell = report.cell("beam-json", "rows")
    assert cell.total if cell.reason is None else "has no JSON" in cell.reason


def test_the_report_records_what_figures_depend_on(report, tmp_path):
    """Versions, flags, machine and options; and it is read back unchanged."""
    report.save(tmp_path / "run.json")
    raw = json.loads((tmp_path / "run.json").read_bytes())
    assert raw["quick"] is True
    assert raw["options"]["rounds"] == 3
    assert raw["method"] == 2
    assert raw["machine"]["zstandard"] == importlib.metadata.version("zstandard")
    assert [p["digest"] for p in raw["payloads"]] == [payloads.builtin(p["name"]).digest for p in raw["payloads"]]
    assert raw["machine"]["cores"] == os.cpu_count()
    assert {"cpu", "system", "python", "build", "load_before", "load_after"} <= raw["machine"].keys()
    versions = {f["name"]: f["versions"] for f in raw["formats"]}
    assert versions["orjson"] == {"orjson": importlib.metadata.version("orjson")}
    assert next(f for f in raw["formats"] if f["name"] == "pickle")["flags"] == "protocol 5"
    again = load(tmp_path / "run.json")
    assert [cell.format for cell in again.cells] == [cell.format for cell in report.cells]
    assert compare(report, again).changes == []
    assert compare(report, again).unlike == []


class Elements(html.parser.HTMLParser):
    """Collects what a page would load, and its ids."""

    def __init__(self):
        super().__init__()
        self.loads, self.ids, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "action", "poster"}:
                self.loads.append(value)
            if name == "id":
                self.ids.append(value)


def test_the_page_is_self_contained(report):
    """It loads and runs nothing, each id is unique, and all payloads are shown."""
    text = page(report)
    found = Elements()
    found.feed(text)
    assert all(link.startswith("#") or link == "data:," for link in found.loads)
    assert all(link[1:] in found.ids for link in found.loads if link.startswith("#"))
    assert len(found.ids) == len(set(found.ids))
    for url in re.findall(r"https?://[^\"'\s<)]+", text.partition('<script type="application')[0]):
        assert url.startswith("http://www.w3.org/")  # names of XML, which nothing loads
    assert "@import" not in text
    assert "url(http" not in text
    assert found.tags.count("script") == 1  # the data
    assert found.tags.count("svg") == 2 * len(report.payloads)
    assert 'name="viewport"' in text
    data = re.search(r'<script type="application/json" id="report">(.*)</script>', text, re.S)[1]
    assert msgspec.json.decode(data, type=Report).made == report.made
    assert "A quick run" in text


def test_the_page_escapes_what_users_name(report):
    """The names of payloads, and reasons, are text."""
    evil = "</script><script>alert(1)</script>"
    cells = [Cell("f", evil, reason=evil)]
    info = [FormatInfo("f", evil, "untyped", evil, {})]
    other = msgspec.structs.replace(report, formats=info, payloads=[PayloadInfo(evil, evil, 1)], cells=cells)
    found = Elements()
    found.feed(page(other))
    assert found.tags.count("script") == 1
