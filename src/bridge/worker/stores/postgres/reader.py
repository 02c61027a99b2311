"""The connection that reads. Reads that come while one is under way share the next round trip.

A read changes nothing, so it is made again if its connection is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import psycopg

from bridge.worker.stores.group_commit import GroupCommit
from bridge.worker.stores.postgres.connection import (
    Connect,
    Connection,
    Unreachable,
    affects_all,
    failure,
    text,
    was_lost,
)
from bridge.worker.stores.postgres.link import Link

Rows = list[tuple[Any, ...]]


class Read(msgspec.Struct):
    """Represents a query, its values, and its rows."""

    query: str
    values: tuple[Any, ...]
    rows: Rows = []


class Reader:
    """Reads what has been committed, without waiting for writers."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._link = Link(connect)
        self._is_stale = False
        self._group = GroupCommit(self._read_all, affects_all, failure)

    def read(self, query: str, values: tuple[Any, ...]) -> Rows:
        """Return the rows of a query. Raises StoreFailed."""
        read = Read(query, values)
        self._group.run(lambda batch: batch.append(read))
        return read.rows

    def read_much(self, query: str, values: tuple[Any, ...]) -> Rows:
        """Return the rows of a query that may take long, on a connection that nothing else waits for."""
        reads = [Read(query, values)]
        try:
            _twice(lambda: self._read_apart(reads))
        except psycopg.Error as error:
            raise failure(error) from error
        return reads[0].rows

    def renew(self) -> None:
        """Use another connection from the next read on: the present one may be to a server that was replaced."""
        self._is_stale = True

    def close(self) -> None:
        """Close the connection. Later reads raise StoreFailed."""
        self._link.close()

    def _read_all(self, apply: Callable[[list[Read]], None]) -> None:
        batch: list[Read] = []
        apply(batch)
        _twice(lambda: self._read_here(batch))

    def _read_here(self, reads: Sequence[Read]) -> None:
        connection = self._link.get()
        if self._is_stale:
            self._is_stale = False
            connection.close()
            connection = self._link.get()
        _fetch(connection, reads)

    def _read_apart(self, reads: Sequence[Read]) -> None:
        try:
            connection = self._connect()
        except psycopg.Error as error:
            raise Unreachable.of(error) from error
        with contextlib.closing(connection):
            _fetch(connection, reads)


def _twice(read: Callable[[], None]) -> None:
    """Call read(), and again if its connection was lost."""
    try:
        read()
    except Unreachable:
        read()


def _fetch(connection: Connection, reads: Sequence[Read]) -> None:
    """Set the rows of `reads`, in one round trip. Raises psycopg.Error, and Unreachable if the connection was lost."""
    share = len(reads) > 1 and psycopg.Pipeline.is_supported()
    try:
        with connection.pipeline() if share else contextlib.nullcontext():
            cursors = [connection.execute(read.query, read.values) for read in reads]
        for read, cursor in zip(reads, cursors, strict=True):
            read.rows = cursor.fetchall()
    except psycopg.Error as error:
        if not was_lost(connection, error):
            raise
        connection.close()
        raise Unreachable(f"the connection to the store was lost: {text(error)}") from error
