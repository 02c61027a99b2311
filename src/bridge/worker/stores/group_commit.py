"""Group commit: changes that arrive while a transaction runs share the next one.

A transaction costs about as much as waiting for the disk, however many changes it holds. The first thread that finds
no transaction running becomes the leader and commits everything that waits. Then it wakes one of the threads whose
changes have arrived in the meantime, which becomes the next leader.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from bridge import errors

Connection = TypeVar("Connection")
Result = TypeVar("Result")


class GroupCommit(Generic[Connection]):
    """Runs the changes of many threads in few transactions.

    transact(apply): begins a transaction, calls apply(connection) and commits. If it raises, it has changed nothing.
    affects_all(error): returns whether an error of `transact` would occur for each change alone as well, as that of a
    locked file would; if not, the changes of a failed transaction are tried one by one.
    failure(error): returns the error that callers get for an error of `transact`.

    transactions: how many were committed. is_busy: whether one is running.
    """

    def __init__(
        self,
        transact: Callable[[Callable[[Connection], None]], None],
        affects_all: Callable[[Exception], bool],
        failure: Callable[[Exception], errors.StoreFailed],
    ) -> None:
        self.transactions = 0
        self.is_busy = False
        self._transact = transact
        self._affects_all = affects_all
        self._failure = failure
        self._lock = threading.Lock()
        self._waiting: list[_Change[Connection]] = []

    @property
    def waiting(self) -> int:
        """Return how many changes wait for the next transaction."""
        return len(self._waiting)

    def run(self, change: Callable[[Connection], Result]) -> Result:
        """Return the result of change(connection) once it is committed.

        The change may raise a BridgeError before it writes anything: its caller gets the error, and the other changes
        of the transaction are committed.
        """
        own = _Change(change)
        with self._lock:
            self._waiting.append(own)
            leads = not self.is_busy
            self.is_busy = True
        if not leads:
            own.wait()
        if not own.is_done:
            self._lead()
        return own.outcome()  # type: ignore[no-any-return]

    def _lead(self) -> None:
        """Commit all changes that wait, then wake the next leader."""
        with self._lock:
            batch, self._waiting = self._waiting, []
        try:
            self._commit(batch)
        finally:
            with self._lock:
                self.is_busy = bool(self._waiting)
                if self.is_busy:
                    self._waiting[0].wake()
            for change in batch:
                if not change.is_done:  # the leader was interrupted, by KeyboardInterrupt for instance
                    change.finish(self._failure(RuntimeError("the transaction was interrupted")))
                change.wake()

    def _commit(self, batch: list[_Change[Connection]]) -> None:
        def apply(connection: Connection) -> None:
            for change in batch:
                change.apply(connection)

        try:
            self._transact(apply)
        except Exception as error:
            if len(batch) > 1 and not self._affects_all(error):
                for change in batch:
                    self._commit([change])
                return
            for change in batch:
                change.finish(self._failure(error))
            return
        self.transactions += 1
        for change in batch:
            change.finish()


class _Change(Generic[Connection]):
    """Represents the change of one caller and its outcome."""

    __slots__ = ("_change", "_error", "_result", "_turn", "is_done")

    def __init__(self, change: Callable[[Connection], Any]) -> None:
        self._change = change
        self._result: Any = None
        self._error: errors.BridgeError | None = None
        self._turn = threading.Lock()
        self._turn.acquire()
        self.is_done = False

    def wait(self) -> None:
        """Wait until the change is done, or until it is this caller's turn to lead."""
        self._turn.acquire()

    def wake(self) -> None:
        self._turn.release()

    def apply(self, connection: Connection) -> None:
        self._error = None
        try:
            self._result = self._change(connection)
        except errors.BridgeError as error:
            self._error = error

    def finish(self, error: errors.BridgeError | None = None) -> None:
        self._error = error or self._error
        self.is_done = True

    def outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._result
