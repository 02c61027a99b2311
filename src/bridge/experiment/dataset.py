"""Runs a program on the rows of a data set: what `map` has in common with `evaluate` on several workers."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from time import monotonic
from types import FrameType
from typing import Any, Protocol

from bridge import errors, flags
from bridge.errors import BridgeError
from bridge.experiment.asking import Calls, Limits, Outcome, Stopped
from bridge.experiment.display import Rate, row_progress, say
from bridge.experiment.document import Document, DocumentError
from bridge.experiment.results import Job, Results, WriteError
from bridge.experiment.rows import Row, Rows
from bridge.experiment.running import Runs
from bridge.experiment.workers import ROWS_PER_WORKER, count_of, pool_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FAILED, UNUSABLE = 1, 2  # exit statuses
FAILURES_IN_A_ROW = 100
MOST_IN_A_CALL = 256  # rows
CALLS_PER_WORKER = 2  # at a time, so that a worker has work while results are on their way
ROW_IN_CALL = re.compile(r"^args\.(?:inputs|devset)\[\d+\]")
# Settings of a model that say how it is reached, and not which it is: a job may be continued with others.
NOT_IDENTITY = frozenset(
    ("api_key", "api_base", "extra_headers", "timeout", "retries", "retry_wait", "retry_cap", "cache", "history")
)


class Interrupted(BaseException):
    """Raised by a signal where there is nothing to finish."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RowCalls(Calls, Protocol):
    """Makes calls of rows, and lines of their results. in_error: keys of the line of a row that has failed."""

    in_error: Mapping[str, Any]

    def label(self, row: Row) -> dict[str, Any]:
        """Return what a result has of its row besides its number."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of a command that works on the rows of a data set."""
    add = parser.add_argument
    add(
        "--workers", type=flags.count, metavar="N", help="workers (default: one for each core), on each node with --ray"
    )
    add(
        "--ray",
        type=_address,
        nargs="?",
        const="",
        metavar="HOST:PORT",
        help="run the workers on the nodes of a Ray cluster (default: RAY_ADDRESS, or the one of this machine)",
    )
    add(
        "--concurrency",
        type=flags.count,
        metavar="N",
        help=f"rows at the same time (default: {ROWS_PER_WORKER} a worker)",
    )
    add("--row-timeout", type=_seconds, metavar="SECONDS", help="time for one row (default 600)")
    add(
        "--patience",
        type=_seconds,
        metavar="SECONDS",
        help="stop if the model cannot be reached for that time (default 600)",
    )
    add(
        "--max-errors",
        type=flags.count,
        metavar="N",
        help=f"stop after N rows that fail (default: after {FAILURES_IN_A_ROW} in a row)",
    )
    add("--grace", type=_seconds, metavar="SECONDS", help="time for open rows after Ctrl-C (default 10)")
    add("--retry-errors", action="store_true", help="ask again for the rows that failed in an earlier run")


def is_asked_for(arguments: argparse.Namespace) -> bool:
    """Return whether the command line has a flag of `add_arguments`, or names a file of results."""
    names = ("workers", "ray", "concurrency", "row_timeout", "patience", "max_errors", "grace", "out")
    return arguments.retry_errors or any(getattr(arguments, name) is not None for name in names)


def job_of(command: str, document: Document, **also: Any) -> Job:
    """Return what the results of a command are of, without rows."""
    models = [{name: each[name] for name in each if name not in NOT_IDENTITY} for each in document.models]
    metric = "" if document.metric is None or command == "map" else _digest(document.metric)
    return Job(command, _digest([document.program, models, also]), metric)


def work(
    arguments: argparse.Namespace, document: Document, rows: Rows, total: int | None, results: Results, calls: RowCalls
) -> Stopped | None:
    """Ask for the results of all rows that have none. Return why the work has ended early, if it has.

    total: how many rows there are, if that is known. Raises DocumentError, WriteError, Interrupted, and the errors of
    `Pool` and of the commands that prepare it.
    """
    if total is not None and results.done >= total:
        return None
    started = pool_of(document, arguments.workers, arguments.ray, arguments.concurrency)
    # Ray prints to stdout, where the results are, that a node is lost.
    with contextlib.redirect_stdout(sys.stderr), started as pool:
        most = arguments.max_errors
        given = {"timeout": arguments.row_timeout, "patience": arguments.patience, "grace": arguments.grace}
        workers = count_of(pool)
        concurrency = arguments.concurrency or ROWS_PER_WORKER * workers
        limits = Limits(
            concurrency,
            batch=MOST_IN_A_CALL,
            width=max(1, min(MOST_IN_A_CALL, concurrency // (CALLS_PER_WORKER * workers))),
            failures=most or FAILURES_IN_A_ROW,
            in_a_row=most is None,
            **{name: value for name, value in given.items() if value is not None},
        )
        runs = Runs(pool, calls, limits)
        left = (
            rows.arriving(runs.wake)
            if rows.is_stream
            else (row for row in islice(rows, total) if not results.has(row))  # no rows that were added meanwhile
        )
        rate = Rate(results.done)
        until = math.inf if arguments.timeout is None else monotonic() + arguments.timeout
        with interruptible(runs.stop), row_progress() as show:
            for outcomes in runs.outcomes(left):
                if outcomes:
                    results.add([_line(outcome, calls) for outcome in outcomes])
                show(results.done, total, _progress(results, rate, total, runs.waiting_for))
                if monotonic() > until and runs.stopped is None:
                    runs.stop(Stopped(f"not done within {arguments.timeout:g} s"))
        if runs.stopped is None and total is not None and results.done < total:
            raise DocumentError(f"only {results.done} of {total} rows were left when they were read again")
        return runs.stopped


@contextlib.contextmanager
def interruptible(stop: Callable[[Stopped], object] | None = None) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP, unless they are ignored, call `stop` or else raise Interrupted."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop is None:
            raise Interrupted(number)
        stop(Stopped(f"stopped by {signal.Signals(number).name}", number))

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status_of(command: str, run: Callable[[], int]) -> int:
    """Return the exit status of a command, `run`'s or that of its error, which is printed."""
    open_standard_streams()
    try:
        with interruptible():
            return run()
    except DocumentError as error:
        say(f"{command}: {error}")
        return UNUSABLE
    except WriteError as error:
        say(f"{command}: {error}")
        return FAILED
    except BridgeError as error:
        say(f"{command}: {error.code}: {error}")
        return UNUSABLE if error.code == "invalid_args" else FAILED
    except Interrupted as interrupted:
        say(f"{command}: cancelled")
        return 128 + interrupted.number


def stopped_early(command: str, results: Results, total: int | None, stopped: Stopped) -> int:
    """Print why the work has ended and how to go on, and return the exit status."""
    say(f"{command}: {stopped.reason}")
    if results.is_stream:
        say(f"{command}: {results.done} rows have a result")
    else:
        say(
            f"{command}: {results.done} of {total} rows have a result in {results.path}; the same command goes on with"
            " the others"
        )
    return 128 + stopped.signal if stopped.signal else FAILED


def open_standard_streams() -> None:
    """Open /dev/null in place of standard streams that the shell has closed, so that no file gets their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def failed(error: BridgeError) -> dict[str, Any]:
    """Return an error as a part of a result. Where it names a place in the call, it is one in the row then."""
    shown: dict[str, Any] = {"code": error.code, "message": ROW_IN_CALL.sub("row", str(error))}
    details = dict(error.details)
    if isinstance(details.get("path"), str):
        details["path"] = ROW_IN_CALL.sub("row", details["path"])
    return {**shown, "details": details} if details else shown


def results_of(
    reply: dict[str, Any], left_out: Collection[str] = ()
) -> tuple[list[dict[str, Any] | BridgeError], float]:
    """Return what `Calls.read` does of the reply to a command on rows. left_out: keys that results do not have."""
    results = [
        _error_of(each["error"])
        if "error" in each
        else {name: value for name, value in each.items() if name not in left_out and (name, value) != ("cost", None)}
        for each in reply["results"]
    ]
    return results, reply["execution_time"]


def _error_of(found: dict[str, Any]) -> BridgeError:
    return errors.from_reply(found["code"], found["message"], found["category"], found["details"])


def _line(outcome: Outcome, calls: RowCalls) -> dict[str, Any]:
    row, result, error = outcome
    line = {"row": row.index, **calls.label(row)}
    return {**line, **result} if error is None else {**line, **calls.in_error, "error": failed(error)}


def _progress(results: Results, rate: Rate, total: int | None, waiting_for: BridgeError | None) -> str:
    parts = [rate.text(results.done, total)]
    if results.score:
        parts.append(f"score {results.score / results.done:.3f}")
    if results.failed:
        parts.append(f"{results.failed} failed")
    if results.cost:
        parts.append(f"${results.cost:.2f}")
    if waiting_for is not None:
        parts.append(f"waiting: {waiting_for.code}: {waiting_for}")
    return ", ".join(parts)


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def _address(text: str) -> str:
    if text not in ("auto", "local") and ":" not in text:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not HOST:PORT, auto or local; write --ray last without one")
    return text


def _seconds(text: str) -> float:
    return flags.number(text, "a number of seconds", 1e9)
