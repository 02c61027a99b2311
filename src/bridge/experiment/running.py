"""Runs on many rows at once, of which each row gets one result: as many as there is room for, again after failures."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, NamedTuple, Protocol

from bridge.errors import BridgeError
from bridge.experiment.failures import Verdict, verdict_of, wait_after
from bridge.experiment.rows import Row

ROOM = 64 << 20  # bytes of the lines that are with workers, unless it is one line
TRIES = 5  # of a row for which the model fails while it answers others
DEATHS = 5  # of workers that had a row
SUSPECT = 2  # deaths after which a row is asked alone, so that no other row suffers
TICK = 0.5  # seconds between two steps, at most
MOST_AT_ONCE = 256  # outcomes of one step


class Workers(Protocol):
    """What runs calls: a pool."""

    def submit(self, command: str, args: Any = None, *, timeout: float | None = None) -> Future[Any]: ...


class Outcome(NamedTuple):
    """The result of a row, or its error."""

    row: Row
    result: Any
    error: BridgeError | None


class Limits(NamedTuple):
    """concurrency: rows at a time. timeout: seconds for one row. patience: seconds for which all rows may fail for a
    reason that passes. grace: seconds for what runs when the work is stopped. failures: rows that may fail, in a row
    (in_a_row) or altogether."""

    concurrency: int
    timeout: float | None = 600.0
    patience: float = 600.0
    grace: float = 10.0
    failures: int = 100
    in_a_row: bool = True


class Stopped(NamedTuple):
    """Why the work was stopped. signal: its number; 0: it was not a signal."""

    reason: str
    signal: int = 0


@dataclass(slots=True, eq=False)
class _Task:
    row: Row
    tries: int = 0
    deaths: int = 0
    sent_at: int = 0  # how many rows had succeeded then
    call: Future[Any] | None = field(default=None, repr=False)


class Runs:
    """Asks workers for the result of each row.

    request: returns the command and the args for a row; it raises a BridgeError for one that cannot be sent. row_path:
    where the row is in the args. read: returns the result that is in a reply, or raises its error.

    waiting_for: the error after which nothing is sent for some time. stopped: why the work ends early.
    """

    def __init__(
        self,
        workers: Workers,
        request: Callable[[Row], tuple[str, dict[str, Any]]],
        row_path: str,
        read: Callable[[Any], Any],
        limits: Limits,
    ) -> None:
        self.stopped: Stopped | None = None
        self.waiting_for: BridgeError | None = None
        self._workers = workers
        self._request = request
        self._row_path = row_path
        self._read = read
        self._limits = limits
        self._ended: SimpleQueue[_Task | None] = SimpleQueue()
        self._open: set[_Task] = set()
        self._bytes = 0
        self._again: deque[_Task] = deque()
        self._suspects: deque[_Task] = deque()
        self._succeeded = 0
        self._failed = 0  # in a row, or altogether
        self._rounds = 0  # of waiting, since a row has succeeded
        self._down_since = math.inf
        self._resumes_at = -math.inf
        self._ends_at = math.inf
        self._has_all = False  # rows

    def stop(self, stopped: Stopped) -> None:
        """Send no more rows, and give those that have been sent a grace time. May be called by a signal handler."""
        if self.stopped is None:
            self.stopped = stopped
            self._ends_at = monotonic() + self._limits.grace
        else:
            self._ends_at = -math.inf
        self._ended.put(None)

    def wake(self) -> None:
        """Look at once whether there are further rows. Any thread may call it."""
        self._ended.put(None)

    def outcomes(self, rows: Iterable[Row | None]) -> Iterator[list[Outcome]]:
        """Yield the outcomes that there are, perhaps none, as soon as there are some and at least twice a second.

        rows: None means that there is no further row yet. Rows that have no outcome when the work is stopped are not
        among the outcomes.
        """
        waiting = iter(rows)
        try:
            while monotonic() < self._ends_at:
                found = self._send(waiting)
                if not found and self._is_over():
                    return
                yield found or self._collect()
        finally:
            for task in self._open:
                assert task.call is not None
                task.call.cancel()

    def _is_over(self) -> bool:
        if self._open:
            return False
        return self.stopped is not None or (self._has_all and not self._again and not self._suspects)

    def _send(self, rows: Iterator[Row | None]) -> list[Outcome]:
        """Send as many rows as there is room for. Return the outcomes of those that could not be sent."""
        found: list[Outcome] = []
        limit = 1 if self._rounds else self._limits.concurrency
        while len(self._open) < limit and self._bytes < ROOM and len(found) < MOST_AT_ONCE:
            if self.stopped is not None or monotonic() < self._resumes_at:
                break
            task = self._next(rows)
            if task is None:
                break
            try:
                self._start(task)
            except BridgeError as error:
                self._settle(task, None, error, found)
        return found

    def _next(self, rows: Iterator[Row | None]) -> _Task | None:
        if self._again:
            return self._again.popleft()
        try:
            row = next(rows)
        except StopIteration:
            self._has_all = True
            return self._suspects.popleft() if self._suspects and not self._open else None
        return None if row is None else _Task(row)

    def _start(self, task: _Task) -> None:
        command, args = self._request(task.row)
        task.sent_at = self._succeeded
        task.call = self._workers.submit(command, args, timeout=self._limits.timeout)
        self._open.add(task)
        self._bytes += len(task.row.line)
        task.call.add_done_callback(lambda _: self._ended.put(task))

    def _collect(self) -> list[Outcome]:
        """Wait for calls that end, and return their outcomes."""
        found: list[Outcome] = []
        now = monotonic()
        until = min(now + TICK, self._ends_at, self._resumes_at if self._resumes_at > now else math.inf)
        try:
            self._end(self._ended.get(timeout=max(0.0, until - now)), found)
            while len(found) < MOST_AT_ONCE:
                self._end(self._ended.get_nowait(), found)
        except Empty:
            pass
        return found

    def _end(self, task: _Task | None, found: list[Outcome]) -> None:
        if task is None:  # only to be woken
            return
        call, task.call = task.call, None
        assert call is not None
        self._open.discard(task)
        self._bytes -= len(task.row.line)
        try:
            result = self._read(call.result())
        except BridgeError as error:
            self._settle(task, None, error, found)
        else:
            self._settle(task, result, None, found)

    def _settle(self, task: _Task, result: Any, error: BridgeError | None, found: list[Outcome]) -> None:
        """Decide about a row that has a result or an error."""
        if error is None:
            self._succeeded += 1
            self._rounds, self._down_since, self.waiting_for = 0, math.inf, None
            if self._limits.in_a_row:
                self._failed = 0
        else:
            verdict = verdict_of(error, self._row_path)
            if verdict is Verdict.STOP:
                self._give_up(f"{error.code}: {error}")
            if verdict is Verdict.STOP or self._is_asked_again(task, verdict, error):
                return
            self._failed += 1
        found.append(Outcome(task.row, result, error))
        if error is not None and self._failed >= self._limits.failures:
            what = "rows in a row" if self._limits.in_a_row else "rows"
            self._give_up(f"{self._failed} {what} have failed; the last one: {error.code}: {error}")

    def _is_asked_again(self, task: _Task, verdict: Verdict, error: BridgeError) -> bool:
        """Return whether the row of a task that has failed is asked again, now or by another run."""
        if verdict is Verdict.CRASH:
            task.deaths += 1
            if task.deaths < DEATHS:
                (self._suspects if task.deaths >= SUSPECT else self._again).append(task)
                return True
        elif verdict is Verdict.WAIT:
            others_succeed = self._succeeded > task.sent_at
            task.tries += others_succeed
            if task.tries < TRIES:
                self._again.append(task)
                if not others_succeed or "retry_after" in error.details:
                    self._wait(error)
                return True
        return False

    def _wait(self, error: BridgeError) -> None:
        """Send nothing for some time, and only one row after that, until a row succeeds."""
        now = monotonic()
        if self.waiting_for is None or now >= self._resumes_at:
            self._rounds += 1
        self._resumes_at = max(self._resumes_at, now + wait_after(error, self._rounds - 1))
        self._down_since = min(self._down_since, now)
        self.waiting_for = error
        if self._resumes_at - self._down_since > self._limits.patience:
            self._give_up(f"no row could be asked for {self._limits.patience:g} s; {error.code}: {error}")

    def _give_up(self, reason: str) -> None:
        if self.stopped is None:
            self.stop(Stopped(reason))
