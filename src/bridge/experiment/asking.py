"""What is asked for the rows of a data set, of whom, and within which limits."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from bridge.errors import BridgeError
from bridge.experiment.rows import Row


class Workers(Protocol):
    """Runs calls: a pool."""

    def submit(self, command: str, args: Any = None, *, timeout: float | None = None) -> Future[Any]: ...


class Outcome(NamedTuple):
    """Represents the result of a row, or its error."""

    row: Row
    result: Any
    error: BridgeError | None


class Limits(NamedTuple):
    """Limits the work on the rows of a data set.

    concurrency: rows at a time. batch: rows in one call, at most; width: of these at a time. timeout: seconds for a
    call. patience: seconds for which all rows may fail for a reason that passes. grace: seconds for what runs when the
    work is stopped. failures: rows that may fail, one after the other (in_a_row) or altogether.
    """

    concurrency: int
    batch: int = 1
    width: int = 1
    timeout: float | None = 600.0
    patience: float = 600.0
    grace: float = 10.0
    failures: int = 100
    in_a_row: bool = True


class Stopped(NamedTuple):
    """Tells why the work was stopped. signal: its number; 0: it was not a signal."""

    reason: str
    signal: int = 0


class Calls(Protocol):
    """Makes calls of rows, and reads their replies. row_path: where the rows are in the args of a call."""

    row_path: str

    def item(self, row: Row) -> Any:
        """Return what a row becomes in the args of a call. Raises BridgeError for a row that cannot be sent."""

    def request(self, items: list[Any], threads: int) -> tuple[str, dict[str, Any]]:
        """Return the command and the args for some rows. threads: how many of them are worked on at the same time."""

    def read(self, reply: Any) -> tuple[list[dict[str, Any] | BridgeError], float]:
        """Return the results of the rows, or their errors, and the seconds that the worker has needed for them."""
