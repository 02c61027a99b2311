"""The connection that writes: changes are committed once, and their outcome is known even if the connection is lost.

Each store has a row in the table `writers`. A transaction notes its number and its results there. A new connection
first counts up the row's `connection`, which waits for a transaction of the last one that still runs, and keeps one
that the server has not begun yet from writing anything. What it reads then is the outcome. If the row is older than
what was acknowledged, the server has lost transactions, as a replica may that was promoted; then the store becomes
another writer, and owns none of the sessions that it had.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from bridge import errors
from bridge.worker.stores.postgres import schema
from bridge.worker.stores.postgres.changes import Change, Statement
from bridge.worker.stores.postgres.connection import Connect, Connection, text, was_lost
from bridge.worker.stores.postgres.link import Link

PATIENCE = 15.0  # seconds for which the outcome of a transaction is asked
ROLLED_BACK = "40"  # class of SQLSTATE: a deadlock, for instance
KEPT = 10_000  # rows of the writers that began last are kept

Results = list[list[int]]  # turn, and the number returned for it


class Writer:
    """Commits changes on a connection of its own. Raises StoreFailed.

    on_connected(): called when the connection has been made, also later, when it is another one.

    id: of its row. number: of its last transaction.
    """

    def __init__(self, connect: Connect, on_connected: Callable[[], None]) -> None:
        self._on_connected = on_connected
        self.id = uuid.uuid4()
        self.number = 0
        self._acknowledged = 0
        self._connections = 0
        self._found: tuple[int, Results] | None = None  # what the row held when the connection began
        self._lock = threading.Lock()
        self._link = Link(connect, self._begin)
        self._link.get()

    def commit(self, statement: Statement, changes: Sequence[Change]) -> None:
        """Make `changes`, each of another session, by `statement`, and set their results.

        Raises psycopg.Error and StoreFailed if nothing was changed, OutcomeUnknown if that could not be found out.
        """
        with self._lock:
            results = self._run(*statement)
            if results is None:  # the connection was lost before anything was committed
                results = self._run(*statement)
            if results is None:
                raise errors.StoreFailed("the store failed twice during the change, and nothing was written")
        for turn, result in results:
            changes[turn - 1].result = result

    def close(self) -> None:
        """Finish the transaction that runs, and close the connection."""
        with self._lock:
            self._link.close()

    def _run(self, sql: str, arguments: dict[str, Any]) -> Results | None:
        """Run the statement. Return its results; None if it has not been committed and will not be."""
        connection = self._link.get()
        if connection.is_lost:
            connection.close()
            connection = self._link.get()
        self.number += 1
        arguments = {**arguments, "writer": self.id, "connection": self._connections, "number": self.number}
        try:
            row = connection.execute(sql, arguments).fetchone()
        except psycopg.Error as error:
            if was_lost(connection, error):
                connection.close()
                return self._outcome(error)
            if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
                connection.close()  # the server has become a replica; there may be another one now
            if (error.sqlstate or "").startswith(ROLLED_BACK):
                return None
            raise
        if row is None:  # another connection has taken the row, or it is gone
            connection.close()
            return None
        self._acknowledged = self.number
        return list(row[0])

    def _outcome(self, lost: psycopg.Error) -> Results | None:
        """Ask for the outcome of the last transaction. Raises OutcomeUnknown."""
        deadline, number = time.monotonic() + PATIENCE, self.number
        while True:
            try:
                self._link.get()
                break
            except errors.StoreFailed as error:
                if self._link.is_closed or time.monotonic() > deadline:
                    raise errors.OutcomeUnknown.of(f"{text(lost)}; {error.message}") from error
        if self._found is None:
            raise errors.OutcomeUnknown.of(f"{text(lost)}; then the server did not know this worker any more")
        last, results = self._found
        if last < number:
            return None
        self._acknowledged = number
        return results

    def _begin(self, connection: Connection) -> None:
        """Begin to use `connection`, and end the use of the one before."""
        schema.prepare(connection)
        self._on_connected()
        row = connection.execute(
            "UPDATE writers SET connection = connection + 1 WHERE id = %s RETURNING connection, last, results",
            (self.id,),
        ).fetchone()
        if row is not None and row[1] >= self._acknowledged:
            self._connections, self._found = row[0], (row[1], list(row[2]))
            return
        # The first connection, or the server has lost what was acknowledged.
        self._found = None if row is None else (row[1], list(row[2]))
        new_id = uuid.uuid4()
        connection.execute(
            "WITH added AS (INSERT INTO writers (id, connection, last, results) VALUES (%s, 1, 0, '{}')"
            " RETURNING number) DELETE FROM writers USING added WHERE writers.number < added.number - %s",
            (new_id, KEPT),
        )
        self.id, self._connections, self._acknowledged, self.number = new_id, 1, 0, 0
