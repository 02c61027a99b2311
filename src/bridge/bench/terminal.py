"""Show progress and tables in the terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bridge.bench import figures
from bridge.bench.comparison import Comparison
from bridge.bench.measure import OnStep
from bridge.bench.report import Report

COLUMNS = ("bytes", "zstd", "memory", *figures.CALLS, "round trip", "±")
FEWER = ("bytes", "encode", "decode", "round trip", "±")
# Columns by the least width of a terminal that they fit into, beside the longest name.
COLUMNS_BY_WIDTH = {128: COLUMNS, 70: FEWER, 54: ("bytes", "round trip", "±"), 0: ("round trip",)}
NARROW = 70  # columns; a narrower terminal shows changes as ratios only


@contextlib.contextmanager
def progress() -> Iterator[OnStep]:
    """Show a progress bar on stderr. Yields the function that moves it."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    bar = Progress(*columns, TextColumn("{task.description}"), console=console)
    task = bar.add_task("")

    def on_step(done: int, of: int, step: str) -> None:
        bar.start()  # only once there is something to show; further calls do nothing
        bar.update(task, completed=done, total=of, description=step)

    try:
        yield on_step
    finally:
        if bar.live.is_started:
            bar.stop()


def show(report: Report, console: Console | None = None) -> None:
    """Print a table for each payload, and the method and machine of the figures."""
    console = console or Console()
    for payload in report.payloads:
        console.print(_table(report, payload.name, payload.about, console.width))
        for reason, formats in figures.not_available(report, payload.name).items():
            console.print(f"  N/A {escape(', '.join(formats))}: {escape(reason)}", style="dim")
        console.print()
    if report.quick:
        console.print("A quick run.", style="bold")
    console.print(escape(figures.method(report)))
    console.print("* fastest, or statistically tied. ± 95 % interval of the round trip's median.")
    console.print(escape(figures.machine(report)), style="dim")
    for note in report.notes:
        console.print(escape(note), style="dim")


def _table(report: Report, payload: str, about: str, width: int) -> Table:
    table = Table(title=f"{escape(payload)}: {escape(about)}", title_justify="left", box=None)
    table.add_column("", no_wrap=True)
    columns = next(columns for least, columns in COLUMNS_BY_WIDTH.items() if width >= least)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    first = figures.fastest(figures.measured(report, payload, "untyped", "typed"))
    for group, title in figures.GROUPS.items():
        cells = figures.measured(report, payload, group)
        if cells:
            table.add_row(f"[dim]{title}[/dim]")
        for cell in cells:
            highlighted = cell.format in first and group in ("untyped", "typed")
            row = figures.row(cell)
            table.add_row(
                f"{'*' if highlighted else ' '} {escape(cell.format)}",
                *(row[column] for column in columns),
                style="bold" if highlighted else "",
            )
    return table


def show_changes(comparison: Comparison, console: Console | None = None) -> None:
    """Print the real and the uncertain differences, largest first."""
    console = console or Console()
    for line in comparison.unlike:
        console.print(f"differs: {escape(line)}", style="yellow")
    console.print(figures.verdict(comparison))
    changes = [*comparison.changes, *comparison.uncertain]
    table = Table(box=None)
    narrow = console.width < NARROW
    for column in ("format", "payload", "what"):
        table.add_column(column, no_wrap=not narrow, overflow="fold")
    for column in ("",) if narrow else ("before", "now", ""):
        table.add_column(column, justify="right", no_wrap=not narrow)
    for change in sorted(changes, key=lambda c: -max(c.ratio or 9e9, 1 / (c.ratio or 9e9))):
        table.add_row(
            *map(escape, (change.format, change.payload, change.step)),
            *(() if narrow else (figures.time(change.old), figures.time(change.new))),
            f"{figures.TIMES} {change.ratio:.2f}" if change.ratio else escape(change.reason),
        )
    if changes:
        console.print(table)
