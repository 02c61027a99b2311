"""Shows how far a command is: a bar if rich is installed, otherwise lines; events only if stderr is a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import IO, Any, cast

LINES = 10  # of one phase, where there is no bar
INTERVAL = 30.0  # seconds between two lines of a job that runs for hours
RECENT = 60.0  # seconds that a rate is of

OnProgress = Callable[[dict[str, Any]], object]
Show = Callable[[int, int | None, str], object]  # how many are done, of how many, and more


def say(text: str) -> None:
    """Print a line on stderr, if there is one."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress() -> Iterator[OnProgress]:
    """Yield a function that shows the data of a `progress` event."""
    if not _is_terminal():
        yield lambda data: None
        return
    with _bar() as show:
        yield _Lines().show if show is None else lambda data: show(data["done"], data["total"], summary(data))


@contextlib.contextmanager
def row_progress() -> Iterator[Show]:
    """Yield a function that shows how many rows are done: as a bar, or as a line from time to time."""
    with _bar() if _is_terminal() else contextlib.nullcontext() as show:
        yield show or _Regularly(INTERVAL).show


def summary(data: dict[str, Any]) -> str:
    """Return what a `progress` event says besides how many rows are done."""
    parts = [data["phase"]]
    if "candidate" in data:
        parts.append(str(data["candidate"]))
    parts += [f"{name} {data[name]:.3f}" for name in ("score", "best") if name in data]
    return " ".join(parts)


class Rate:
    """Computes the rate of the last minute or so, in rows. start: how many were done before."""

    def __init__(self, start: int) -> None:
        self._samples = deque([(monotonic(), start)])

    def text(self, done: int, total: int | None) -> str:
        """Return the rate now that `done` rows are done, and the time left."""
        now = monotonic()
        self._samples.append((now, done))
        while self._samples[0][0] < now - RECENT and len(self._samples) > 2:
            self._samples.popleft()
        since, before = self._samples[0]
        rate = (done - before) / max(now - since, 0.001)
        text = f"{rate:.{0 if rate >= 10 else 2}f} rows/s"
        return text if total is None or not rate else f"{text}, {duration((total - done) / rate)} left"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # it is None if the shell has closed it


class _Lines:
    def __init__(self) -> None:
        self._last: tuple[Any, ...] = ()

    def show(self, data: dict[str, Any]) -> None:
        done, total = data["done"], data["total"]
        step = (data["phase"], data.get("candidate"), done * LINES // (total or 1))
        if step != self._last:
            self._last = step
            say(f"{done}/{total} {summary(data)}")


class _Regularly:
    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._last = monotonic()

    def show(self, done: int, total: int | None, text: str) -> None:
        if monotonic() - self._last >= self._interval:
            self._last = monotonic()
            say(f"{done}/{'?' if total is None else total} {text}")


class _Stderr:
    """Passes on what is written to a terminal, for as long as that is there."""

    def __init__(self, terminal: IO[str]) -> None:
        self._terminal = terminal

    def __getattr__(self, name: str) -> Any:
        return getattr(self._terminal, name)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._terminal.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._terminal.flush()


@contextlib.contextmanager
def _bar() -> Iterator[Show | None]:
    """Yield a function that draws a bar; None without rich, which is not a dependency."""
    try:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column
    except ImportError:
        yield None
        return
    whole = Column(no_wrap=True)  # a narrow terminal shortens the bar, and no number
    done, time = MofNCompleteColumn(table_column=whole), TimeElapsedColumn(table_column=whole)
    console = Console(file=cast("IO[str]", _Stderr(sys.stderr)))
    with Progress(BarColumn(), done, time, TextColumn("{task.description}"), console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda count, total, text: bar.update(task, completed=count, total=total, description=escape(text))
