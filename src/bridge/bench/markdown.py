"""Write the tables of a report in Markdown."""

from __future__ import annotations

from collections.abc import Callable

from bridge.bench import figures
from bridge.bench.report import Cell, Report

Show = Callable[[Cell], str]


def tables(report: Report) -> str:
    """Return tables of round trips, sizes, and the libraries' calls alone, by format and payload."""
    own = ("untyped", "typed")
    return "\n".join(
        (
            "Round trip; bold: fastest, or statistically tied:\n",
            _table(report, lambda cell: figures.time(cell.total), (*figures.GROUPS,), highlighted=True),
            "Bytes of a message, and after zstd:\n",
            _table(report, _sizes, own),
            "Encode and decode, the library's calls alone:\n",
            _table(report, _calls, (*own, "beam")),
        )
    )


def _sizes(cell: Cell) -> str:
    return ", ".join(figures.size(count) for count in (cell.bytes, cell.zstd) if count is not None)


def _calls(cell: Cell) -> str:
    return " + ".join(figures.time(cell.median(step)) for step in ("encode", "decode"))


def _table(report: Report, show: Show, groups: tuple[str, ...], highlighted: bool = False) -> str:
    names = [payload.name for payload in report.payloads]
    best = {
        (format, payload)
        for payload in names
        for format in figures.fastest(figures.measured(report, payload, "untyped", "typed"))
    }
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for info in report.group(*groups):
        shown = []
        for payload in names:
            cell = report.cell(info.name, payload)
            text = show(cell) if cell and cell.total else "N/A"
            shown.append(f"**{text}**" if highlighted and (info.name, payload) in best else text)
        lines.append(f"| {info.name} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"
