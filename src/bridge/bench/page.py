"""The report as one HTML file that needs nothing else: no script, no network."""

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
    "Each format in its library's documented best use, each in a process of its own, with a"
    " worker of the same format behind two pipes. Every message is compared with what comes"
    " back, by value and type, before anything is timed; what cannot carry it or changes it is"
    " N/A.",
    "The round trip decides: a value becomes bytes, crosses the pipe in a length-prefixed"
    " frame, is decoded by the worker, encoded again, and comes back as a value. Where a"
    " library's own objects are not Python's (protobuf, Arrow), making them (build) and"
    " reading every value out of them (read) is part of it; who computes on them as they are"
    " may leave those parts out. Structs are Python objects: making them is no part of it.",
    "Formats take turns, in another order in each round. A sample is a start of all processes"
    " (a round, in a quick run); the figure is the median, the interval the 95 % bootstrap"
    " interval of the median, computed exactly. All processes share one core, so that waking a"
    " sleeping core is in none of the figures; across cores each trip takes some 20 to 45 µs"
    " more, whatever the format.",
    "encode and decode are the library's calls alone, warm; text outside ASCII is encoded from"
    " strings made anew for each call: CPython keeps the UTF-8 of one that was asked for it."
    " typed: to an object of a declared type, by the library itself or by msgspec.convert"
    " behind it. zstd: each message on its own, level 3. memory: what one message takes at the most"
    " while it is encoded and decoded and all is kept.",
    "Not shown: a language model's answer takes a second or more, and the choice of a format"
    " then is noise; neither are other languages' libraries, machines with other caches, or"
    " messages unlike these: measure your own with --data.",
)


def save(report: Report, path: str | Path, comparison: Comparison | None = None) -> None:
    """Raises OSError."""
    Path(path).write_text(html(report, comparison), encoding="utf-8")


def html(report: Report, comparison: Comparison | None = None) -> str:
    """The whole page."""
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
        f"<h2>Round trip, {figures.TIMES} the quickest</h2>",
        '<p class="small">By format and payload. 1.0 is the quickest of the payload; N/A: it cannot'
        " carry it, or changes it. Wider than the screen: it scrolls.</p>",
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
        '<p class="small">Bold: the quickest, or not to be told from it.</p></details>'
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
    unlike = "".join(f"<li>not alike: {escape(line)}</li>" for line in comparison.unlike)
    return (
        f"<h2>Against earlier runs</h2><p>{figures.verdict(comparison)}.</p>"
        f"<ul class='small'>{unlike}</ul>"
        "<div class='wide'><table><thead><tr><th>format</th><th>payload</th><th>what</th>"
        f"<th>before</th><th>now</th><th></th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
