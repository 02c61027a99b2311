"""Shows how far a command is: a bar if rich is installed, otherwise lines; nothing unless stderr is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

LINES = 10  # of one phase, where there is no bar

OnProgress = Callable[[dict[str, Any]], None]


@contextlib.contextmanager
def progress() -> Iterator[OnProgress]:
    """Yield a function that shows the data of a `progress` event."""
    if sys.stderr is None or not sys.stderr.isatty():  # it is None if the shell has closed it
        yield lambda data: None
        return
    try:
        import rich  # noqa: F401  # which is not a dependency
    except ImportError:
        yield _Lines().show
    else:
        with _bar() as show:
            yield show


def summary(data: dict[str, Any]) -> str:
    """Return what a `progress` event says besides how many rows are done."""
    parts = [data["phase"]]
    if "candidate" in data:
        parts.append(str(data["candidate"]))
    parts += [f"{name} {data[name]:.3f}" for name in ("score", "best") if name in data]
    return " ".join(parts)


class _Lines:
    def __init__(self) -> None:
        self._last: tuple[Any, ...] = ()

    def show(self, data: dict[str, Any]) -> None:
        done, total = data["done"], data["total"]
        step = (data["phase"], data.get("candidate"), done * LINES // (total or 1))
        if step != self._last:
            self._last = step
            print(f"{done}/{total} {summary(data)}", file=sys.stderr)


@contextlib.contextmanager
def _bar() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(data: dict[str, Any]) -> None:
            bar.update(task, completed=data["done"], total=data["total"], description=escape(summary(data)))

        yield show
