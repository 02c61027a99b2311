"""Draw a report as SVG or PNG with matplotlib, each picture narrow enough for a phone."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from bridge.bench import figures
from bridge.bench.report import PARTS, Cell, Report

WIDTH = 3.7  # inches, about 355 CSS pixels
STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Helvetica"],
    "font.size": 9,
    "text.parse_math": False,  # a file name may contain a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "bridge",
    "axes.spines.top": False,
    "axes.spines.right": False,
}
# From the palette of Okabe and Ito, which most colour-blind people can distinguish.
COLOURS = {
    "trip_build": "#E69F00",
    "trip_encode": "#0072B2",
    "trip_pipe": "#BBBBBB",
    "trip_decode": "#56B4E9",
    "trip_read": "#D55E00",
}
FAMILIES = {"json": "#D55E00", "msgpack": "#0072B2", "etf": "#009E73"}
OTHERS = "#555555"


def split(report: Report, payload: str) -> Figure:
    """Draw the parts of a round trip's time, by format."""
    cells = figures.measured(report, payload)[::-1]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.22 * max(1, len(cells))), layout="constrained")
    axes = figure.subplots()
    names, left = [cell.format for cell in cells], [0.0] * len(cells)
    unit, divisor = _unit(cells)
    for part in PARTS:
        widths = [(cell.median(part) or 0) / divisor for cell in cells]
        if any(widths):
            axes.barh(
                names,
                widths,
                left=left,
                color=COLOURS[part],
                label=figures.PART_NAMES[part],
                height=0.75,
            )
        left = [a + b for a, b in zip(left, widths, strict=True)]
    totals = [cell.times["trip_total"] for cell in cells]
    ends = [t.median / divisor for t in totals]
    reach = [
        [(t.median - t.low) / divisor for t in totals],
        [(t.high - t.median) / divisor for t in totals],
    ]
    axes.errorbar(ends, names, xerr=reach, fmt="none", ecolor="#222222", elinewidth=0.8, capsize=1.5)
    axes.set_xlabel(f"round trip, {unit}")
    axes.margins(y=0.01)
    if cells:
        figure.legend(
            loc="outside upper center",
            ncols=5,
            frameon=False,
            handlelength=0.9,
            columnspacing=0.7,
            handletextpad=0.4,
        )
    return figure


def size_and_speed(report: Report, payload: str) -> Figure:
    """Draw the bytes of a message against the time of a round trip, with a column of names beside the points."""
    cells = figures.measured(report, payload, "untyped", "typed")
    figure = Figure(figsize=(WIDTH, 3.6))
    axes = figure.add_axes((0.17, 0.21, 0.35, 0.76))
    unit, divisor = _unit(cells)
    points = [(cell.bytes or 0, (cell.total or 0) / divisor, cell.format) for cell in cells]
    axes.set(xlabel="bytes of a message", ylabel=f"round trip, {unit}")
    for x, y, name in points:
        axes.plot(x, y, "o", color=_family(name), markersize=5, alpha=0.85)
    if points:
        _scale(axes.xaxis, [x for x, _, _ in points])
        _scale(axes.yaxis, [y for _, y, _ in points])
        axes.tick_params(axis="x", labelrotation=45)
        _beside(axes, points)
    return figure


def _beside(axes: Any, points: list[tuple[float, float, str]]) -> None:
    axes.margins(0.12)
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    height = [to_axes.transform((x, y))[1] for x, y, _ in points]
    # From the bottom up, each name at least a line above the last; then down again from the top.
    step = min(0.058, 1.0 / len(points))
    heights: list[float] = []
    for at in height:
        heights.append(max(at, heights[-1] + step if heights else 0.0))
    top = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], top)
        top = heights[index] - step
    for (x, y, name), at in zip(points, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            xytext=(1.06, at),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            color=_family(name),
            annotation_clip=False,
            arrowprops={
                **{"arrowstyle": "-", "color": _family(name), "lw": 0.4, "alpha": 0.6},
                **{"relpos": (0, 0.5), "shrinkA": 1},
            },
        )


def heat(report: Report) -> Figure:
    """Draw the time of each format as a multiple of the fastest, by payload."""
    formats = [info.name for info in report.group("untyped", "typed")]
    names = [payload.name for payload in report.payloads]
    figure = Figure(figsize=(2.2 + 0.72 * len(names), 1.2 + 0.27 * len(formats)), layout="constrained")
    axes = figure.subplots()
    for column, payload in enumerate(names):
        best = next(iter(figures.measured(report, payload, "untyped", "typed")), None)
        for row, name in enumerate(formats):
            cell = report.cell(name, payload)
            ratio = cell.total / best.total if cell and best and cell.total and best.total else None
            axes.add_patch(_square(column, row, ratio))
            text = "N/A" if ratio is None else f"{ratio:.1f}"
            colour = "#999999" if ratio is None else "white" if dark(ratio) else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(formats) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(formats)), formats)
    axes.set_title(f"round trip, {figures.TIMES} the fastest", fontsize=9, loc="left")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def _square(column: int, row: int, ratio: float | None) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, color=shade(ratio), ec="white", lw=1)


def shade(ratio: float | None) -> str:
    """Return the colour of a multiple of the fastest: pale for 1, darkest from 16 on."""
    if ratio is None:
        return "#f4f4f4"
    depth = min(1.0, math.log2(max(1.0, ratio)) / 4)
    pale, deep = to_rgb("#e8f3ec"), to_rgb("#8a2d0b")
    middle = to_rgb("#f5c77e")
    one, other, share = (pale, middle, depth * 2) if depth < 0.5 else (middle, deep, depth * 2 - 1)
    mixed = (a + (b - a) * share for a, b in zip(one, other, strict=True))
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in mixed)


def dark(ratio: float) -> bool:
    """Return whether text on the shade of a multiple should be white."""
    return ratio > 8


def _family(name: str) -> str:
    alike = {"orjson": "json", "bridge-json": "json"}
    known = next((f for f in FAMILIES if f in alike.get(name, name)), "")
    return FAMILIES.get(known, OTHERS)


def _unit(cells: list[Cell]) -> tuple[str, float]:
    longest = max((cell.total or 0 for cell in cells), default=0)
    return ("ms", 1e6) if longest >= 2e6 else ("µs", 1e3)


def _scale(axis: Any, values: list[float]) -> None:
    """Make an axis logarithmic if its values span a factor of 3, with plain numbers at the ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if min(values) > 0 and max(values) > 3 * min(values):
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    else:
        axis.set_major_locator(MaxNLocator(5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _plain(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    return f"{value:g}" if value < 1000 else f"{value:,.0f}".replace(",", " ")


def svg(draw: Any, *arguments: Any, prefix: str) -> str:
    """Return a drawing as an SVG element for a page. prefix: makes its ids unique there."""
    with matplotlib.rc_context(STYLE):
        figure, out = draw(*arguments), io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg ") :], flags=re.S)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', _opening, text, count=1, flags=re.S)


def _opening(match: re.Match[str]) -> str:
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {names} {match[1]} role="img">'


def save(report: Report, folder: str | Path) -> None:
    """Write all pictures to a folder, as PNG and SVG. Raises OSError."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    pictures: dict[str, tuple[Any, ...]] = {"heat": (heat, report)}
    for payload in report.payloads:
        name = re.sub(r"[^\w.-]", "_", payload.name)
        pictures[f"split-{name}"] = (split, report, payload.name)
        pictures[f"size-{name}"] = (size_and_speed, report, payload.name)
    with matplotlib.rc_context(STYLE):
        for name, (draw, *arguments) in pictures.items():
            figure = draw(*arguments)
            figure.savefig(Path(folder, f"{name}.png"), dpi=160)
            figure.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None, "Creator": None})
