"""Runs on many rows, of which each gets one result: as many at a time as there is room for, again after failures."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from bridge.errors import BridgeError
from bridge.experiment.asking import Calls, Limits, Outcome, Stopped, Workers
from bridge.experiment.failures import Verdict, blame_of, is_rate_limit, may_be_outage, verdict_of, wait_after
from bridge.experiment.rows import Row

ROOM = 64 << 20  # bytes of the lines that are with workers, unless it is one line
TRIES = 5  # of a row for which the model fails while it answers others; more if it limits the rate, see `blame_of`
DEATHS = 5  # of workers that had a row
SUSPECT = 2  # deaths after which a row is asked alone, so that no other row suffers
TICK = 0.5  # seconds between two steps, at most
FAST = 0.02  # seconds that a worker needs for a row: after less, calls get more rows
MOST_AT_ONCE = 256  # outcomes of one step


@dataclass(slots=True, eq=False)
class _Task:
    """A row that has no result yet. item: of `Calls.item`. tries: failures that may be due to it. deaths: of workers
    that had it. is_alone: whether it has to have a call of its own. sent_at: how many rows had succeeded then."""

    row: Row
    item: Any = None
    tries: float = 0
    deaths: int = 0
    is_alone: bool = False
    sent_at: int = 0


@dataclass(slots=True, eq=False)
class _Call:
    tasks: list[_Task]
    future: Future[Any]


class Runs:
    """Asks workers for the result of each row.

    A call has one row, or several if calls are over so fast that they cost more than what they ask for.

    waiting_for: the error after which nothing is sent for some time. stopped: why the work ends early.
    """

    def __init__(self, workers: Workers, calls: Calls, limits: Limits) -> None:
        self.stopped: Stopped | None = None
        self.waiting_for: BridgeError | None = None
        self._workers = workers
        self._calls = calls
        self._limits = limits
        self._most = limits.concurrency  # rows at a time, fewer while the provider limits the rate
        self._batch = 1
        self._ended: SimpleQueue[_Call | None] = SimpleQueue()
        self._open: set[_Call] = set()
        self._open_rows = 0  # at work; further rows of their calls wait
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
            for call in self._open:
                call.future.cancel()

    def _is_over(self) -> bool:
        if self._open:
            return False
        return self.stopped is not None or (self._has_all and not self._again and not self._suspects)

    def _send(self, rows: Iterator[Row | None]) -> list[Outcome]:
        """Send as many rows as there is room for. Return the outcomes of those that could not be sent."""
        found: list[Outcome] = []
        limit = 1 if self._rounds and not self._has_all else self._most
        while self._open_rows < limit and self._bytes < ROOM and len(found) < MOST_AT_ONCE:
            if self.stopped is not None or monotonic() < self._resumes_at:
                break
            size = 1 if self._rounds else self._batch
            if self._open and self._open_rows + min(size, self._limits.width) > limit:  # a small call would come first
                break
            tasks = self._next_ones(rows, size, found)
            if not tasks:
                break
            self._start(tasks, found)
        return found

    def _next_ones(self, rows: Iterator[Row | None], most: int, found: list[Outcome]) -> list[_Task]:
        """Return the rows of the next call. Rows that cannot be sent have an outcome."""
        tasks: list[_Task] = []
        while len(tasks) < most and self._bytes < ROOM and self.stopped is None and len(found) < MOST_AT_ONCE:
            if tasks and self._again and self._again[0].is_alone:
                break
            task = self._next(rows)
            if task is None:
                break
            if task.item is None:
                try:
                    task.item = self._calls.item(task.row)
                except BridgeError as error:
                    self._settle(task, None, error, found)
                    continue
            self._bytes += len(task.row.line)
            tasks.append(task)
            if task.is_alone:
                break
        return tasks

    def _next(self, rows: Iterator[Row | None]) -> _Task | None:
        if self._again and not self._rounds:  # whether the provider answers again, a row that is new tells best
            return self._again.popleft()
        row = None
        try:
            row = next(rows)
        except StopIteration:
            self._has_all = True
        if row is not None:
            return _Task(row)
        if self._again:
            return self._again.popleft()
        return self._suspects.popleft() if self._has_all and self._suspects and not self._open else None

    def _start(self, tasks: list[_Task], found: list[Outcome]) -> None:
        for task in tasks:
            task.sent_at = self._succeeded
        command, args = self._calls.request([task.item for task in tasks], min(len(tasks), self._limits.width))
        try:
            future = self._workers.submit(command, args, timeout=self._limits.timeout)
        except BridgeError as error:
            self._bytes -= sum(len(task.row.line) for task in tasks)
            self._failed_together(tasks, error, found)
            return
        call = _Call(tasks, future)
        self._open.add(call)
        self._open_rows += min(len(tasks), self._limits.width)
        future.add_done_callback(lambda _: self._ended.put(call))

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

    def _end(self, call: _Call | None, found: list[Outcome]) -> None:
        if call is None:  # only to be woken
            return
        self._open.discard(call)
        self._open_rows -= min(len(call.tasks), self._limits.width)
        self._bytes -= sum(len(task.row.line) for task in call.tasks)
        try:
            results, seconds = self._calls.read(call.future.result())
        except BridgeError as error:
            self._failed_together(call.tasks, error, found)
            return
        if seconds * min(len(call.tasks), self._limits.width) > FAST * len(call.tasks):
            self._batch = max(1, len(call.tasks) // 2)
        elif len(call.tasks) == self._batch:
            self._batch = min(self._limits.batch, 2 * self._batch)
        for task, result in zip(call.tasks, results, strict=True):
            if isinstance(result, BridgeError):
                self._settle(task, None, result, found)
            else:
                self._settle(task, result, None, found)

    def _failed_together(self, tasks: list[_Task], error: BridgeError, found: list[Outcome]) -> None:
        """Decide about the rows of a call that has failed: each has a call of its own if that may be due to another."""
        if len(tasks) > 1 and verdict_of(error, self._calls.row_path) in (Verdict.ROW, Verdict.STOP):
            for task in tasks:
                task.is_alone = True
            self._again.extend(tasks)
            return
        for task in tasks:
            self._settle(task, None, error, found)

    def _settle(self, task: _Task, result: Any, error: BridgeError | None, found: list[Outcome]) -> None:
        """Decide about a row that has a result or an error."""
        if error is None:
            self._succeeded += 1
            self._most = min(self._most + 1, self._limits.concurrency)
            self._rounds, self._down_since, self.waiting_for = 0, math.inf, None
            if self._limits.in_a_row:
                self._failed = 0
        else:
            verdict = verdict_of(error, self._calls.row_path)
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
            task.is_alone = True
            if task.deaths < DEATHS:
                (self._suspects if task.deaths >= SUSPECT else self._again).append(task)
                return True
        elif verdict is Verdict.WAIT:
            if is_rate_limit(error):
                self._most = max(1, self._most // 2)
            others_succeed = self._succeeded > task.sent_at
            # At the end, no other row will tell whether the model answers: that it has answered some is enough then.
            if others_succeed or (self._has_all and self._succeeded and not may_be_outage(error)):
                task.tries += blame_of(error)
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
