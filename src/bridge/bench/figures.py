"""Write figures as text, alike in the terminal, in plots and in the HTML page."""

from __future__ import annotations

from bridge.bench.comparison import RUNS, Comparison
from bridge.bench.estimates import Estimate
from bridge.bench.report import PARTS, STEPS, Cell, FormatInfo, Report

TIMES = "\N{MULTIPLICATION SIGN}"
PART_NAMES = {part: part.removeprefix("trip_") for part in PARTS}
GROUPS = {
    "untyped": "without a schema",
    "typed": "schema or types",
    "bridge": "bridge worker",  # the work of the worker counts as pipe
    "beam": "BEAM as host",
}
CALLS = ("build", "encode", "decode", "read", "typed")
assert set(PARTS) < set(STEPS)
WARM_TEXT = (
    "Text outside ASCII was encoded from strings whose UTF-8 was cached, which most libraries"
    " then copy: faster than in later reports."
)


def time(ns: float | None) -> str:
    """Return a time in µs below a millisecond, else in ms: `0.07 µs`, `12.3 µs`, `1.43 ms`."""
    if ns is None:
        return ""
    value, unit = (ns / 1e3, "µs") if ns < 1e6 else (ns / 1e6, "ms")
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f} {unit}"


def size(count: float | None) -> str:
    """Return a size in decimal units: `54 B`, `12.4 kB`, `1.05 MB`."""
    if count is None:
        return ""
    if count < 1000:
        return f"{count:.0f} B"
    value, unit = (count / 1e3, "kB") if count < 1e6 else (count / 1e6, "MB")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def spread(estimate: Estimate | None) -> str:
    """Return the distance of the farther end of the interval, in percent of the median."""
    if estimate is None or not estimate.median:
        return ""
    reach = max(estimate.high - estimate.median, estimate.median - estimate.low)
    return f"±{100 * reach / estimate.median:.0f} %"


def verdict(comparison: Comparison) -> str:
    """Return the result of a comparison in a sentence or two, without the figures."""
    old, new = comparison.runs
    found = (
        f"{comparison.compared} figures compared, of {old} old and {new} new runs:"
        f" {len(comparison.changes)} really different"
    )
    if min(old, new) >= RUNS:
        return (
            f"{found} (every new run differs from every old one by more than runs of one build do,"
            f" and by {comparison.threshold:.0%} or more)"
        )
    return f"{found}, {len(comparison.uncertain)} that may be: it takes at least {RUNS} runs of each build to tell"


def row(cell: Cell) -> dict[str, str]:
    """Return the figures of a cell by the column of a table."""
    return {
        **{"round trip": time(cell.total), "±": spread(cell.times["trip_total"])},
        **{"bytes": size(cell.bytes), "zstd": size(cell.zstd), "memory": size(cell.memory)},
        **{step: time(cell.median(step)) for step in CALLS},
    }


def measured(report: Report, payload: str, *groups: str) -> list[Cell]:
    """Return the cells that have a round trip, fastest first."""
    names = {format.name for format in (report.group(*groups) if groups else report.formats)}
    cells = [c for c in report.cells if c.payload == payload and c.format in names and c.total]
    return sorted(cells, key=lambda cell: cell.total or 0)


def fastest(cells: list[Cell]) -> set[str]:
    """Return the formats that are fastest or statistically tied: their intervals overlap that of the fastest."""
    if not cells:
        return set()
    limit = cells[0].times["trip_total"].high
    return {cell.format for cell in cells if cell.times["trip_total"].low <= limit}


def not_available(report: Report, payload: str) -> dict[str, list[str]]:
    """Return formats by the reason why they are N/A."""
    found: dict[str, list[str]] = {}
    for cell in report.cells:
        if cell.payload == payload and cell.reason:
            found.setdefault(cell.reason, []).append(cell.format)
    return found


def machine(report: Report) -> str:
    """Return the machine of a report, in one line."""
    m, core = report.machine, report.options.get("core")
    load = ", ".join(f"{x:.1f}" for x in (m["load_before"][0], m.get("load_after", [0])[0]))
    parts = [
        f"{m['cpu']}, {m['cores']} cores" + (", virtual" if m.get("virtual") else ""),
        m["system"],
        f"{m['python']} {m['build']}",
        *([m["otp"]] if m.get("otp") else []),
        f"all on core {core}" if core is not None else "not pinned",
        f"load before and after: {load}",
    ]
    return "; ".join(parts)


def method(report: Report) -> str:
    """Return the number of samples, and how the method of an old report differs, in one line."""
    if report.method == 1 and not all(payload.ascii for payload in report.payloads):
        return f"{_samples(report)} {WARM_TEXT}"
    return _samples(report)


def _samples(report: Report) -> str:
    starts, rounds = report.options["starts"], report.options["rounds"]
    if report.quick or starts == 1:
        return (
            f"{rounds} rounds of one start of each process. The intervals do not include"
            " differences from start to start: good for a first look, not for a claim."
        )
    return f"{starts} starts of each process, each of them a sample."


def about(info: FormatInfo) -> str:
    """Return the description, flags and versions of a format, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
    return "; ".join(part for part in (info.about, info.flags, versions) if part)
