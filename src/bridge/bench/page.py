"""Write a report as one HTML file without scripts that needs no network."""

from __future__ import annotations

from html import escape
from pathlib import Path

from bridge.bench import figures, plots
from bridge.bench.comparison import Comparison
from bridge.bench.report import Cell, PayloadInfo, Report

TITLE = "Serialization formats over a real pipe"
STYLE = """
:root { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; }
body { max-width: 68rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 0.5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 0.25rem; }
p { margin: 0.4rem 0; max-width: 44rem; } .small { font-size: 0.85rem; color: #555; }
.quick { background: #fff3cd; border-left: 4px solid #e0a800; padding: 0.5rem 0.75rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.5rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 1px solid #999; font-weight: 600; }
.heat td + td { text-align: center; } tbody tr.best td { font-weight: 600; }
tr.group td { color: #555; font-style: italic; padding-top: 0.5rem; }
.plots { display: grid; gap: 0.5rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; } figcaption { font-size: 0.85rem; color: #555; }
svg { width: 100%; max-width: 30rem; height: auto; display: block; }
details { margin: 0.25rem 0; } summary { cursor: pointer; padding: 0.4rem 0; }
nav a { display: inline-block; padding: 0.3rem 0.6rem 0.3rem 0; }
ul { padding-left: 1.2rem; margin: 0.3rem 0; } li { overflow-wrap: anywhere; }
"""
METHOD = (
    "Each format is used as its library's documentation recommends, in a separate process, with a"
    " worker of the same format connected by two pipes. Before anything is timed, every message is"
    " compared with the decoded one by value and type. A format that cannot carry a message, or"
    " changes it, is N/A.",
    "The round trip decides: a value is encoded, crosses the pipe in a length-prefixed frame, is"
    " decoded by the worker, encoded again, and comes back as a value. If a library's objects are"
    " not Python objects (protobuf, Arrow), making them (build) and reading every value out of"
    " them (read) is part of it; a program that uses those objects directly saves these parts."
    " Structs are Python objects: making them is not part of it.",
    "Formats take turns, in a new order in each round. A sample is a start of all processes (in a"
    " quick run: a round). The figure is the median; the interval is the 95 % bootstrap interval"
    " of the median, computed exactly. All processes share one core, so no figure includes the"
    " time to wake a sleeping core; across cores each trip takes about 20 to 45 µs longer,"
    " whatever the format.",
    "encode and decode are the library's calls alone, warm. Text outside ASCII is encoded from new"
    " strings in each call, because CPython caches the UTF-8 of a string. typed: to an object of a"
    " declared type, by the library itself or by msgspec.convert after decoding. zstd: each message"
    " alone, level 3. memory: the peak that one message takes while it is encoded and decoded and"
    " everything is kept.",
    "Not shown: the answer of a language model, which takes a second or more, so that the choice of"
    " a format does not matter; libraries of other languages; machines with other caches; messages"
    " unlike these. Measure your own with --data.",
)


def save(report: Report, path: str | Path, comparison: Comparison | None = None) -> None:
    """Write the page to `path`. Raises OSError."""
    Path(path).write_text(html(report, comparison), encoding="utf-8")


def html(report: Report, comparison: Comparison | None = None) -> str:
    """Return the page."""
    raw = report.encode().decode().replace("</", "<\\/")
    links = "".join(f'<a href="#p{index}">{escape(payload.name)}</a>' for index, payload in enumerate(report.payloads))
    parts = [
        f"<h1>{TITLE}</h1>",
        f'<p class="small">{escape(report.made)}, dspex-bridge {escape(report.bridge)},'
        f" {report.seconds:.0f} s. {escape(figures.machine(report))}.</p>",
        f'<p class="quick">A quick run: {escape(figures.method(report))}</p>'
        if report.quick
        else f"<p>{escape(figures.method(report))}</p>",
        _changes(comparison) if comparison else "",
        f"<h2>Round trip, {figures.TIMES} the fastest</h2>",
        '<p class="small">By format and payload. 1.0 is the fastest with that payload; N/A: the format'
        " cannot carry it, or changes it. A table wider than the screen scrolls.</p>",
        _heat(report),
        f"<nav>{links}</nav>",
        *(_payload(report, payload, index) for index, payload in enumerate(report.payloads)),
        "<h2>Method</h2>",
        *(f"<p>{escape(text)}</p>" for text in METHOD),
        "<h2>Formats</h2><ul>",
        *(f"<li><b>{escape(info.name)}</b>: {escape(figures.about(info))}</li>" for info in report.formats),
        "</ul>",
        *(f'<p class="small">{escape(note)}</p>' for note in report.notes),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{TITLE}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(parts)
        + f'\n<script type="application/json" id="report">{raw}</script></body></html>\n'
    )


def _heat(report: Report) -> str:
    head = "".join(f"<th>{escape(payload.name)}</th>" for payload in report.payloads)
    rows = []
    for info in report.group("untyped", "typed"):
        cells = [_heat_cell(report, info.name, payload.name) for payload in report.payloads]
        rows.append(f"<tr><td>{escape(info.name)}</td>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table class="heat"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _heat_cell(report: Report, format: str, payload: str) -> str:
    cell = report.cell(format, payload)
    best = next(iter(figures.measured(report, payload, "untyped", "typed")), None)
    if cell is None or cell.total is None or best is None or not best.total:
        reason = escape((cell and cell.reason) or "not measured", quote=True)
        return f'<td style="background:#f4f4f4;color:#767676" title="{reason}">N/A</td>'
    ratio = cell.total / best.total
    colour = "#fff" if plots.dark(ratio) else "#000"
    style = f"background:{plots.shade(ratio)};color:{colour}"
    return f'<td style="{style}" title="{figures.time(cell.total)}">{ratio:.1f}</td>'


def _payload(report: Report, payload: PayloadInfo, index: int) -> str:
    name = payload.name
    split = plots.svg(plots.split, report, name, prefix=f"a{index}")
    sizes = plots.svg(plots.size_and_speed, report, name, prefix=f"b{index}")
    reasons = "".join(
        f"<li>N/A {escape(', '.join(formats))}: {escape(reason)}</li>"
        for reason, formats in figures.not_available(report, name).items()
    )
    return (
        f'<h2 id="p{index}">{escape(name)}</h2><p class="small">{escape(payload.about)}</p>'
        f'<div class="plots"><figure>{split}<figcaption>Where the time goes</figcaption>'
        f"</figure><figure>{sizes}<figcaption>Size against speed; left and below is better"
        f"</figcaption></figure></div>{_figures(report, name)}<ul class='small'>{reasons}</ul>"
    )


def _figures(report: Report, payload: str) -> str:
    some = figures.measured(report, payload)
    head = "".join(f"<th>{column}</th>" for column in (figures.row(some[0]) if some else ()))
    best = figures.fastest(figures.measured(report, payload, "untyped", "typed"))
    rows = []
    for group, title in figures.GROUPS.items():
        cells = figures.measured(report, payload, group)
        if cells:
            rows.append(f'<tr class="group"><td>{title}</td></tr>')
        compared = group in ("untyped", "typed")
        rows += [_row(cell, best=compared and cell.format in best) for cell in cells]
    return (
        f'<details><summary>All figures of {escape(payload)}</summary><div class="wide"><table>'
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
        '<p class="small">Bold: fastest, or statistically tied.</p></details>'
    )


def _row(cell: Cell, best: bool) -> str:
    row = "".join(f"<td>{value}</td>" for value in figures.row(cell).values())
    return f'<tr class="{"best" if best else ""}"><td>{escape(cell.format)}</td>{row}</tr>'


def _changes(comparison: Comparison) -> str:
    rows = "".join(
        f"<tr><td>{escape(c.format)}</td><td>{escape(c.payload)}</td><td>{escape(c.step)}</td>"
        f"<td>{figures.time(c.old)}</td><td>{figures.time(c.new)}</td>"
        f"<td>{f'{figures.TIMES} {c.ratio:.2f}' if c.ratio else escape(c.reason)}</td></tr>"
        for c in (*comparison.changes, *comparison.uncertain)
    )
    unlike = "".join(f"<li>differs: {escape(line)}</li>" for line in comparison.unlike)
    return (
        f"<h2>Against earlier runs</h2><p>{figures.verdict(comparison)}.</p>"
        f"<ul class='small'>{unlike}</ul>"
        "<div class='wide'><table><thead><tr><th>format</th><th>payload</th><th>what</th>"
        f"<th>before</th><th>now</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
