"""The command line `python -m bridge bench`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge.bench.measure import Options

MISSING = "bench needs {name}, which is not installed: pip install 'dspex-bridge[bench]'"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags, without importing anything heavy."""
    add = parser.add_argument
    add("--quick", action="store_true", help="measure everything in less than a minute, less exactly")
    add("--json", metavar="FILE", help="write the report there")
    add("--html", metavar="FILE", help="write it as one HTML file that needs no network")
    add("--plots", metavar="DIR", help="write its pictures there, as PNG and SVG")
    add("--markdown", metavar="FILE", help="write its tables there")
    add(
        "--compare",
        metavar="OLD.json",
        nargs="+",
        help="show which differences to the runs of an old build are real; exit status 3 if"
        " something is really slower, 4 if there are too few runs to tell",
    )
    add(
        "--load",
        metavar="RUN.json",
        nargs="+",
        help="measure nothing, and show the first of these reports; --compare uses all of them",
    )
    add(
        "--data",
        metavar="PATH",
        action="append",
        default=[],
        help="your own JSON or JSON lines, a file or a folder; nothing else is measured unless --payloads is given",
    )
    add("--format", metavar="MODULE:ATTR", action="append", default=[], help="your own format")
    add("--formats", metavar="A,B", type=_names, help="measure only these")
    add("--payloads", metavar="A,B", type=_names, help="measure only these, and --data")
    add(
        "--starts",
        type=_count,
        metavar="N",
        help="how often each process is started, which is the number of samples (default 11)",
    )
    add("--core", default="last", metavar="N", help="pin all processes to that core, or 'none' (default: last)")
    add("--no-beam", action="store_true", help="do not measure the BEAM")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return value


def main(arguments: argparse.Namespace) -> int:
    """Run the benchmark, and return the exit status.

    0: done. 1: every pair is N/A. 2: an error; both write a line to stderr. 3, 4: see
    `Comparison.exit_status`. 130: Ctrl-C.
    """
    try:
        return _run(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "bridge":
            raise
        print(MISSING.format(name=error.name), file=sys.stderr)
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    return 2


def _run(arguments: argparse.Namespace) -> int:
    from bridge.bench import comparison, markdown, page, plots, report, terminal
    from bridge.bench.measure import run

    old = [report.load(path) for path in arguments.compare or ()]
    for path in (arguments.json, arguments.html, arguments.markdown):
        if path and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: no such folder")  # fail now, not after minutes
    if arguments.load:
        new = [report.load(path) for path in arguments.load]
    else:
        options = _options(arguments)
        with terminal.progress() as on_step:
            new = [run(options, on_step)]
    found = new[0]
    compared = comparison.compare(old, new) if old else None
    if arguments.json:
        found.save(arguments.json)
    if arguments.html:
        page.save(found, arguments.html, compared)
    if arguments.markdown:
        Path(arguments.markdown).write_text(markdown.tables(found), encoding="utf-8")
    if arguments.plots:
        plots.save(found, arguments.plots)
    terminal.show(found)
    if compared:
        terminal.show_changes(compared)
    if not any(cell.total for cell in found.cells):
        print("bench: nothing was measured: every pair of format and payload is N/A", file=sys.stderr)
        return 1
    return compared.exit_status if compared else 0


def _options(arguments: argparse.Namespace) -> Options:
    from bridge.bench import payloads
    from bridge.bench.measure import QUICK, Options

    changed: dict[str, Any] = dict(QUICK) if arguments.quick else {}
    defaults = Options()
    changed["formats"] = (*(arguments.formats or defaults.formats), *arguments.format)
    chosen = arguments.payloads or (() if arguments.data else defaults.payloads)
    unknown = [name for name in chosen if name not in payloads.BUILTIN]
    if unknown:
        known = ", ".join(payloads.BUILTIN)
        raise ValueError(f"no payload {unknown[0]!r}; known: {known}, and --data PATH")
    changed |= {"payloads": chosen, "data": tuple(arguments.data), "beam": not arguments.no_beam}
    if arguments.starts:
        changed["starts"] = arguments.starts
    if arguments.core != "last":
        changed["core"] = None if arguments.core == "none" else _core(arguments.core)
    return Options(**changed)


def _core(text: str) -> int:
    allowed = sorted(os.sched_getaffinity(0))
    if not text.isdigit() or int(text) not in allowed:
        raise ValueError(f"--core {text}: not one of {', '.join(map(str, allowed))}, or none")
    return int(text)
