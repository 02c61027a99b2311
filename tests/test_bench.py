"""The benchmark of formats: what it measures is equal, what it cannot measure is N/A, its page
stands alone, its statistics hold. Through real processes and pipes, in tiny runs."""

from __future__ import annotations

import contextlib
import html.parser
import importlib.metadata
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy
import pytest
from rich.console import Console

from bridge.bench import BadData, Options, Payload, compare, figures, formats, load, measure, payloads, run, terminal
from bridge.bench.contender import Case, Pipe, reason_of
from bridge.bench.estimates import differ, estimate
from bridge.bench.page import html as page
from bridge.bench.report import Cell, FormatInfo, PayloadInfo, Report
from bridge.bench.schema import difference, infer, merge, msgspec_type, of_all

TINY = {"starts": 1, "rounds": 3, "budget": 0.0005, "quick": True}
SUPPORT = Path(__file__).parent / "support"


def bench(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "bridge", "bench", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def report() -> Report:
    """A tiny run of every format, the user's own too, and of a BEAM where there is one."""
    own = [f"bench_formats:{name}" for name in OWN]
    chosen = {"formats": (*formats.BUILTIN, *formats.BRIDGE, *own)}
    with contextlib.chdir(SUPPORT):
        return run(Options(**TINY, **chosen, payloads=("ping", "rows", "floats-768")))


# What each of them is N/A for, on `ping`.
OWN = {
    "Literal": None,
    "Rounding": "comes back changed: $.id: 17 became 17.0",
    "Raising": "RuntimeError: no such luck",
    "Refusing": "not on a Sunday",
    "Missing": "a_library_that_is_not_there is not installed",
    "Dying": "its worker ended (7)",
    "Failing": "its worker ended (1): ValueError: worse over there",
    "Fickle": "comes back changed from the worker: $: a key 'more' appeared",
}
SUITABLE = {
    "arrow": {"rows", "telemetry", "floats-768", "floats-1536", "ints-4096"},
    "protobuf-struct": {"floats-768", "floats-1536", "unicode"},
}
NO_BYTES = {"json", "orjson", "msgspec-json", "protobuf-struct", "bridge-json"}


@pytest.mark.parametrize("payload", payloads.BUILTIN)
@pytest.mark.parametrize("format", formats.BUILTIN)
def test_each_format_brings_each_payload_back_or_says_why_not(format, payload):
    """Which pairs are N/A is pinned, and each has a reason of one line."""
    expected = payload in SUITABLE.get(format, payloads.BUILTIN)
    expected = expected and not (payload == "blob" and format in NO_BYTES)
    reason = reason_against(format, payloads.builtin(payload))
    assert (reason is None) == expected, reason
    assert reason is None or (5 < len(reason) < 250 and "\n" not in reason)


def reason_against(format: str, payload: Payload) -> str | None:
    """Why the pair is N/A, if it is."""
    try:
        case = Case(formats.load(format), payload)
        case.check()
    except Exception as error:
        return reason_of(error)
    assert case.check_typed() is None
    assert case.sizes()["bytes"] > 0
    return None


def utf8_is_known(text: str) -> bool:
    """Whether CPython holds it: then the object is larger than the same one made anew."""
    return sys.getsizeof(text) > sys.getsizeof("".join(list(text)))


class Watching(formats.MsgspecMessagePack):
    """Counts the calls that were given text whose UTF-8 is known already."""

    def __init__(self, payload):
        super().__init__(payload)
        self.calls, self.known, encode = 0, 0, self.encode

        def watched(native):
            self.calls += 1
            self.known += any(map(utf8_is_known, native.values()))
            return encode(native)

        self.encode = watched


class WatchingForeign(Watching):
    """Where `build` is what text goes into."""

    foreign = True

    def __init__(self, payload):
        super().__init__(payload)
        self.build, self.encode = self.encode, bytes
        self.read, self.decode = self.decode, bytes


@pytest.mark.parametrize("kind", [Watching, WatchingForeign])
def test_text_is_encoded_from_new_strings(kind):
    """By itself and in round trips: no library copies UTF-8 that an earlier call has left behind.
    Of ASCII there is none to leave."""
    payload = payloads.builtin("unicode")
    case = Case(kind, payload)
    warm = payload.messages[0]
    assert any(map(utf8_is_known, warm.values()))  # or this test would see nothing
    watch = case.format
    watch.calls = watch.known = 0
    case.times(0.0005)
    assert watch.calls > 10
    assert watch.known == 0
    pipe = Pipe([sys.executable, "-m", "bridge.bench.worker", "msgspec-msgpack"])
    try:
        pipe.trips(case, 5, check=True)
    finally:
        pipe.close()
    assert watch.known == 0
    plain = Case(kind, Payload("plain", "", [{"a": "b"}]))
    assert plain.native(0) is plain.native(1)


def test_payloads_are_the_same_each_time():
    """Their seeds are fixed, in whatever process."""
    code = "from bridge.bench import payloads as p; import pickle, hashlib; print(hashlib.sha256(b''"
    code += ".join(pickle.dumps(p.builtin(n).messages) for n in p.BUILTIN)).hexdigest())"
    found = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(found) == 1


def test_a_run_measures_what_it_says(report):
    """Every format has every figure or a reason; the parts of a round trip make its whole."""
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
def test_a_format_of_ones_own_is_measured_or_has_its_reason(report, name):
    """Whether it raises, refuses, changes data, or ends its worker: N/A, and all others go on."""
    cell = report.cell(name.lower(), "ping")
    assert (cell.reason is None) == (OWN[name] is None)
    assert (OWN[name] or "") in (cell.reason or "")
    if name == "Literal":
        assert cell.bytes == len(repr(payloads.builtin("ping").messages[0]))


def test_a_format_that_hangs_is_given_up(tmp_path, monkeypatch):
    """With its worker, and the next one is measured."""
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
    """3 that comes back as 3.0 is changed, with the place."""
    reason = reason_against("bench_formats:Rounding", Payload("numbers", "", [{"a": 3}]))
    assert reason == "comes back changed: $.a: 3 became 3.0"


@pytest.mark.skipif(shutil.which("elixir") is None, reason="Elixir is not installed")
def test_a_beam_is_measured(report):
    """ETF from the BEAM has a round trip; JSON too, or the reason why there is none."""
    assert report.cell("beam-etf", "rows").total > 0
    cell = report.cell("beam-json", "rows")
    assert cell.total if cell.reason is None else "has no JSON" in cell.reason


def test_the_report_records_what_figures_depend_on(report, tmp_path):
    """Versions, flags, machine, options; and it is read back as it was written."""
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


def test_the_page_stands_alone(report):
    """Nothing is loaded, nothing runs; each id stands once; all payloads are there."""
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
    """A payload or a reason is text."""
    evil = "</script><script>alert(1)</script>"
    cells = [Cell("f", evil, reason=evil)]
    info = [FormatInfo("f", evil, "untyped", evil, {})]
    other = msgspec.structs.replace(report, formats=info, payloads=[PayloadInfo(evil, evil, 1)], cells=cells)
    found = Elements()
    found.feed(page(other))
    assert found.tags.count("script") == 1


def synthetic(seed: int | str, **shift: float) -> Report:
    """A report of ten formats, 1000 ns each with 2 % noise, times `shift` by name."""
    rng = random.Random(seed)
    names = [f"f{index}" for index in range(10)]
    cells = []
    for name in names:
        middle = 1000 * shift.get(name, 1.0)
        samples = [rng.gauss(middle, 0.02 * middle) for _ in range(9)]
        cells.append(Cell(name, "p", bytes=1.0, times={"trip_total": estimate(samples)}))
    return Report(
        **{
            "made": "",
            "seconds": 1.0,
            "quick": False,
            "options": {"starts": 9, "rounds": 5},
            "machine": {},
        },
        formats=[FormatInfo(name, "", "untyped", "", {}) for name in names],
        payloads=[PayloadInfo("p", "", 1)],
        cells=cells,
    )


def test_comparing_tells_a_real_difference_from_noise():
    """Of three runs of each build, a hundred times: the slower format is named, and no other."""
    for seed in range(0, 300, 3):
        old = [synthetic(seed + run) for run in range(3)]
        slower = [synthetic(1000 + seed + run, f3=1.15) for run in range(3)]
        found = compare(old, slower)
        assert (found.compared, found.runs) == (10, (3, 3))
        assert [change.format for change in found.changes] == ["f3"]
        assert found.changes[0].ratio == pytest.approx(1.15, abs=0.06)
        assert (found.uncertain, found.exit_status) == ([], 3)
        assert compare(slower, old).exit_status == 0  # quicker is no failure
        same = compare(old, [synthetic(1000 + seed + run) for run in range(3)])
        assert (same.changes, same.uncertain, same.exit_status) == ([], [], 0)


def test_runs_of_one_build_that_differ_hide_smaller_differences():
    """What equal runs show in one format counts for the same step of the others."""
    old = [synthetic(1), synthetic(2, f0=1.4), synthetic(3)]
    new = [synthetic(4, f3=1.3), synthetic(5, f3=1.3), synthetic(6, f3=1.3)]
    assert compare(old, new).changes == []
    new = [synthetic(4, f3=1.6), synthetic(5, f3=1.6), synthetic(6, f3=1.6)]
    assert [change.format for change in compare(old, new).changes] == ["f3"]


@pytest.mark.parametrize(("olds", "news"), [(1, 1), (3, 1), (2, 3)])
def test_too_few_runs_cannot_tell(olds, news):
    """A difference between one run each is one that may be, with a status of its own."""
    old = [synthetic(run) for run in range(olds)]
    found = compare(old, [synthetic(100 + run, f3=1.15) for run in range(news)])
    assert found.changes == []
    assert [change.format for change in found.uncertain] == ["f3"]
    assert found.exit_status == 4
    assert "cannot tell from fewer than 3 runs" in figures.verdict(found)
    assert compare(old, [synthetic(100)] * news).exit_status == 0


def test_comparing_says_what_else_is_unlike():
    """Another machine, another version, a cell that became N/A."""
    old, new = synthetic(1), synthetic(1)
    old.machine, new.machine = {"cpu": "old"}, {"cpu": "new"}
    old.formats[0].versions, new.formats[0].versions = {"x": "1"}, {"x": "2"}
    new.cells[0] = Cell("f0", "p", reason="broken")
    found = compare(old, new)
    unknown = "whether the messages are the same is not known: p"
    assert found.unlike == ["cpu: old → new", "x: 1 → 2", unknown]
    assert [(change.step, change.reason) for change in found.changes] == [("N/A", "broken")]
    assert found.exit_status == 3
    back = compare(new, old)
    assert [change.reason for change in back.changes] == ["no longer N/A (broken)"]
    assert back.exit_status == 0


def of_payload(report: Report, **facts) -> Report:
    """With other facts of its payload."""
    (payload,) = report.payloads
    return msgspec.structs.replace(report, payloads=[msgspec.structs.replace(payload, **facts)])


def test_comparing_says_how_else_it_was_measured():
    """Starts, rounds, and the load where a process more wanted to run."""
    old, new = (of_payload(synthetic(1), digest="a") for _ in range(2))
    old.options, new.options = {"starts": 9, "rounds": 1}, {"starts": 3, "rounds": 2}
    old.machine = {"load_before": [0.2, 0, 0], "load_after": [1.0, 0, 0]}
    new.machine = {"load_before": [0.9, 0, 0], "load_after": [4.0, 0, 0]}
    assert compare(old, new).unlike == ["starts: 9 → 3", "rounds: 1 → 2", "load_after: 1.0 → 4.0"]


def test_other_messages_are_not_compared():
    """Of one name, by their hash; by count or bytes where an older report has no hash."""
    old, new = synthetic(1), synthetic(1, f3=2.0)
    same = compare(of_payload(old, digest="a"), of_payload(new, digest="a"))
    assert [change.format for change in same.uncertain] == ["f3"]
    assert same.unlike == []
    longer = msgspec.structs.replace(new, cells=[msgspec.structs.replace(cell, bytes=2.0) for cell in new.cells])
    for was, now in [
        (of_payload(old, digest="a"), of_payload(new, digest="b")),
        (old, of_payload(new, messages=2)),
        (old, longer),
    ]:
        found = compare(was, now)
        assert (found.compared, found.changes) == (0, [])
        assert found.unlike == ["p: other messages, not compared"]


def test_bytes_that_a_library_changed_are_told():
    """Of the same messages: the times are compared, and the sizes named."""
    old, new = (of_payload(synthetic(1), digest="a") for _ in range(2))
    new.cells[0].bytes = 3.0
    found = compare(old, new)
    assert found.compared == 10
    assert found.unlike == ["bytes of p as f0: 1.0 → 3.0"]


@pytest.mark.parametrize(("plain", "compared"), [(True, 10), (False, 0)])
def test_text_that_was_measured_in_another_way_is_not_compared(plain, compared):
    """Reports from before: what is all ASCII is compared, other text is not."""
    new = of_payload(msgspec.structs.replace(synthetic(1), method=2), digest="a", ascii=plain)
    found = compare(synthetic(1), new)
    assert found.compared == compared
    assert found.unlike[0] == "method: 1 → 2"
    assert ("p: its text was encoded in another way, not compared" in found.unlike) != plain


def test_messages_have_their_hash(tmp_path):
    """It tells types and order apart, and is the same for the same."""
    texts = [b'{"a":1,"b":"x"}', b'{"b":"x","a":1}', b'{"a":1.0,"b":"x"}', b'{"a":1,"b":"\\u00e9"}']
    made = [payloads.from_file(written(tmp_path, "m.json", text)) for text in texts]
    assert len({payload.digest for payload in made}) == len(texts)
    again = payloads.from_file(written(tmp_path, "m.json", b" " + texts[0]))
    assert again.digest == made[0].digest
    assert [payload.ascii for payload in made] == [True, True, True, False]


def test_one_start_claims_less():
    """Intervals of one start do not hold what differs from start to start."""
    old, new = synthetic(1), synthetic(2, f3=1.15)
    new.options = {"starts": 1}
    assert compare(old, new).uncertain == []


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9, 15])
def test_estimates_are_what_drawing_gives(count):
    """The median is numpy's; the interval's ends are those of a hundred thousand resamples."""
    rng = numpy.random.default_rng(count)
    samples = rng.normal(100, 10, count)
    found = estimate(list(samples))
    assert found.median == pytest.approx(numpy.median(samples))
    drawn = numpy.sort(rng.choice(samples, (100_000, count)), axis=1)
    lower, upper = drawn[:, (count - 1) // 2], drawn[:, count // 2]
    assert found.low == numpy.percentile(lower, 2.5, method="inverted_cdf")
    assert found.high == numpy.percentile(upper, 97.5, method="inverted_cdf")


def test_differing_needs_both():
    """Intervals apart, and more than the threshold."""
    base = estimate([100, 101, 102])
    assert differ(base, estimate([110, 111, 112]), 0.05)
    assert differ(base, estimate([90, 91, 92]), 0.05)
    assert not differ(base, estimate([103, 104, 105]), 0.05)
    assert not differ(base, estimate([100, 150, 160]), 0.05)


def test_schemas_are_inferred():
    """Records are merged, missing keys and nulls told apart, types accept what they came from."""
    rows = [{"a": 1, "b": None}, {"a": 2.5, "b": "x", "some-key": [1, -2]}]
    schema = of_all(rows)
    assert schema.fields["a"].kinds == ["float", "int"]
    assert schema.fields["b"].nullable
    assert schema.optional == {"some-key"}
    assert schema.fields["some-key"].items.negative
    kind = msgspec_type(schema)
    for row in rows:
        assert difference(row, msgspec.to_builtins(msgspec.convert(row, kind))) is None
    assert merge(infer(1), infer(1)) == infer(1)
    for value in ({1: 2}, {1, 2}):
        with pytest.raises(TypeError):
            infer(value)


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (1, 1.0, "$: 1 became 1.0"),
        (1, True, "$: 1 became True"),
        ("a", b"a", "$: 'a' became b'a'"),
        ({"a": [1, 2]}, {"a": [1, 3]}, "$.a[1]: 2 became 3"),
        ({"a": 1}, {}, "$: the key 'a' is gone"),
        ({}, {"a": 1}, "$: a key 'a' appeared"),
        ([1], [1, 2], "$: 1 entries became 2"),
    ],
)
def test_a_difference_has_its_place(one, other, words):
    """And equal values have none."""
    assert difference(one, other) == words
    assert difference(one, one) is None


SHAPES = {
    "optional": [{"a": 1}, {"b": None}, {"a": None, "b": "x"}],
    "nested lists": [{"m": [[1, 2], [], [3]]}],
    "lists in lists": [[[1, 2], [3]]],
    "lists of lists of records": [{"m": [[{"a": 1}], [{"a": -2}]]}],
    "mixed": [{"v": [1, "a", None, 2.5]}],
    "nothing": [None],
    "empty": [{}],
    "empty list": [{"a": []}],
    "scalar": ["text"],
    "odd keys": [{"a-b": 1, "class": 2, "": 3, "é": 4}],
    "big numbers": [{"n": 2**70}],
    "surrogate": [{"s": "\ud800"}],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format", formats.BUILTIN)
def test_odd_shapes_come_back_or_are_refused(format, shape):
    """Whatever the user's data look like: equal, or N/A in one line. The standard library's carry
    all of it, but JSON no lone surrogate."""
    reason = reason_against(format, Payload(shape, "", SHAPES[shape]))
    assert reason is None or (reason and "\n" not in reason)
    if format in ("json", "pickle"):
        assert (reason is None) == (shape != "surrogate" or format == "pickle")


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_data_of_ones_own(tmp_path):
    """JSON is one message, JSON lines one each, a folder all of its files."""
    written(tmp_path, "a.json", b'\xef\xbb\xbf{"x": 1}')
    written(tmp_path, "b.jsonl", b'{"x": 1}\n\n{"y": [2]}\n')
    written(tmp_path, "c.json", b'{"x": 1}\n{"x": 2}\n')
    written(tmp_path, "ignored.txt", b"no")
    found = {p.name: p.messages for p in payloads.from_paths([str(tmp_path)])}
    assert found["a.json"] == [{"x": 1}]
    assert found["b.jsonl"] == [{"x": 1}, {"y": [2]}]
    assert found["c.json"] == [{"x": 1}, {"x": 2}]
    assert len(found) == 3
    many = written(tmp_path, "many.jsonl", b"1\n" * 1500)
    assert len(payloads.from_file(many).messages) == payloads.MAX_LINES
    assert "the first 1000 of 1500" in payloads.from_file(many).about


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
def test_bad_files_are_told(tmp_path, name, data, words):
    """The file's name and what is wrong with it."""
    path = written(tmp_path, name, data)
    with pytest.raises(BadData, match=f"{re.escape(name)}.*{words}"):
        payloads.from_file(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    """Two gigabytes, of which none is read: the message says what to do."""
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
        (["--formats", "xml"], "no format 'xml'; there are json, orjson"),
        (["--payloads", "pong"], "no payload 'pong'; there are ping"),
        (["--format", "bench_formats:not_a_format"], "not a subclass of bridge.bench.Format"),
        (["--format", "bench_formats:nothing"], "AttributeError"),
        (["--format", "no_such_module:x"], "ModuleNotFoundError"),
        (["--compare", "bench_formats.py"], "not a report of this benchmark"),
        (["--load", "none.json"], "No such file"),
        (["--json", "no/such/folder/x.json"], "no such folder"),
        (["--core", "999"], "not one of"),
        (["--formats", "json,json"], "two formats are called json"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, arguments, words):
    """And exit status 2, before anything is measured."""
    shutil.copy(SUPPORT / "bench_formats.py", tmp_path)
    (tmp_path / "folder").mkdir()
    result = bench(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert words in line


def test_without_the_extra_it_says_what_to_type(tmp_path):
    """One line, where rich is not installed."""
    (tmp_path / "rich.py").write_text("raise ModuleNotFoundError('no', name='rich')")
    result = bench("--quick", cwd=tmp_path)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line == "bench needs rich, which is not installed: pip install 'dspex-bridge[bench]'"


def test_without_zstandard_only_its_sizes_are_left_out(tmp_path):
    """All else is measured, and a note says why they are missing."""
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
    """After its tables, which have the reasons."""
    shutil.copy(SUPPORT / "bench_formats.py", tmp_path)
    common = ["--quick", "--payloads", "blob", "--formats", "json", "--no-beam"]
    result = bench(*common, cwd=tmp_path)
    assert result.returncode == 1
    assert "N/A json" in result.stdout
    assert "bench: nothing was measured" in result.stderr


def test_progress_ends():
    """Whatever was left out, the last that is told is all of it."""
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
    """Whole names and whole figures, in as many columns as there is room for."""
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
    """On a narrow one the ratio alone."""
    console = Console(width=width, record=True, file=io.StringIO())
    terminal.show_changes(compare(synthetic(1), synthetic(2, f3=2.0)), console)
    text = console.export_text()
    assert "…" not in text
    assert re.search(rf"f3 +p +trip_total .*{figures.TIMES} \d\.\d\d", text)
    assert ("before" in text) == (width == 80)


def test_the_command_measures_writes_and_compares(tmp_path):
    """The user's own data and format, all the files, then a second run against the first."""
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
    """For a pipeline: 3 slower, 4 cannot tell, else 0."""
    names = {side: [f"{side}{run}.json" for run in range(runs)] for side in ("old", "new")}
    for side, shift in (("old", 1.0), ("new", factor)):
        for name in names[side]:
            made = synthetic(name, f3=shift)
            facts = {**report.machine, "load_before": [0.0]}
            msgspec.structs.replace(made, machine=facts).save(tmp_path / name)
    done = bench("--load", *names["new"], "--compare", *names["old"], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (status, "")
    assert "f3" in done.stdout
