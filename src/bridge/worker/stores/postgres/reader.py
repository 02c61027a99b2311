"""The connection that reads. A read changes nothing, so it is made again if its connection is lost."""

from __future__ import annotations

import contextlib
from typing import Any

import psycopg

from bridge.worker.stores.postgres.connection import Connect, Connection, Unreachable, failure, is_lost, text
from bridge.worker.stores.postgres.link import Link

Rows = list[tuple[Any, ...]]


class Reader:
    """Reads what has been committed, without waiting for writers."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._link = Link(connect)

    def read(self, query: str, values: tuple[Any, ...]) -> Rows:
        """Return the rows of a query. Raises StoreFailed."""
        try:
            return _rows(self._link.get(), query, values)
        except Unreachable:
            return _rows(self._link.get(), query, values)

    def read_much(self, query: str, values: tuple[Any, ...]) -> Rows:
        """Return the rows of a query that may take long, on a connection that nothing else waits for."""
        try:
            return self._read_apart(query, values)
        except Unreachable:
            return self._read_apart(query, values)

    def close(self) -> None:
        """Close the connection. Later reads raise StoreFailed."""
        self._link.close()

    def _read_apart(self, query: str, values: tuple[Any, ...]) -> Rows:
        try:
            connection = self._connect()
        except psycopg.Error as error:
            raise Unreachable.of(error) from error
        with contextlib.closing(connection):
            return _rows(connection, query, values)


def _rows(connection: Connection, query: str, values: tuple[Any, ...]) -> Rows:
    try:
        return connection.execute(query, values).fetchall()
    except psycopg.Error as error:
        if not is_lost(connection, error):
            raise failure(error) from error
        connection.close()
        raise Unreachable(f"the connection to the store was lost: {text(error)}") from error
