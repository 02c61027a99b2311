"""The tables of a report for a document."""

from __future__ import annotations

from collections.abc import Callable

from bridge.bench import words
from bridge.bench.report import Cell, Report

Show = Callable[[Cell], str]


def tables(report: Report) -> str:
    """Round trips, sizes, and the libraries' calls alone, by format and payload."""
    parts = [
        ("Round trip", "of the median; bold: the quickest, or not to be told from it", _total),
        (
            "Bytes of a message",
            "after zstd",
            lambda c: f"{words.size(c.bytes)} ({words.size(c.zstd)})",
        ),
        ("Encode / decode", "the library's calls alone", _calls),
    ]
    return "\n".join(f"{title} ({of}):\n\n{_table(report, show)}" for title, of, show in parts)


def _total(cell: Cell) -> str:
    return words.time(cell.total)


def _calls(cell: Cell) -> str:
    times = [words.time(cell.median(step)) for step in ("encode", "decode")]
    return " / ".join(times) if all(times) else ""


def _table(report: Report, show: Show) -> str:
    names = [payload.name for payload in report.payloads]
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    best = {
        payload: words.fastest(words.measured(report, payload, "untyped", "typed"))
        for payload in names
    }
    for info in report.formats:
        cells = [report.cell(info.name, payload) for payload in names]
        shown = [
            "N/A"
            if cell is None or cell.reason
            else f"**{show(cell)}**"
            if show is _total and cell.format in best[cell.payload]
            else show(cell)
            for cell in cells
        ]
        if any(text not in ("N/A", "") for text in shown):
            lines.append(f"| {info.name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
