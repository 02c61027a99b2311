"""A connection that is made again when it was lost, with growing pauses between attempts."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable

import psycopg

from bridge import errors
from bridge.worker.stores.postgres.connection import Connect, Connection, Unreachable, failure

FIRST_PAUSE = 0.05  # seconds
LONGEST_PAUSE = 1.0


class Pauses:
    """Computes the pauses between attempts: twice as long each time, with jitter, up to LONGEST_PAUSE seconds."""

    def __init__(self) -> None:
        self._longest = 0.0

    def reset(self) -> None:
        self._longest = 0.0

    def next(self) -> float:
        self._longest = min(max(FIRST_PAUSE, 2 * self._longest), LONGEST_PAUSE)
        return self._longest * random.uniform(0.5, 1.0)


class Link:
    """Holds one connection, made by connect() when it is needed; prepare(connection) is called before it is used.

    Both may raise psycopg.Error and StoreFailed. After a failure, the next attempt waits for a moment.
    """

    def __init__(self, connect: Connect, prepare: Callable[[Connection], None] = lambda connection: None) -> None:
        self._connect = connect
        self._prepare = prepare
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pauses = Pauses()
        self._pause = 0.0
        self._failed_at = 0.0  # by time.monotonic()
        self._failure: errors.StoreFailed | None = None

    def get(self) -> Connection:
        """Return the connection. Raises StoreFailed if the server cannot be reached, or the link is closed."""
        connection = self._connection
        if connection is not None and not connection.closed:
            return connection
        began = time.monotonic()
        with self._lock:
            connection = self._connection
            if connection is not None and not connection.closed:
                return connection
            if self._failure is not None and self._failed_at >= began:
                raise type(self._failure)(self._failure.message)  # it was attempted while this thread waited
            if self._closed.wait(max(0.0, self._failed_at + self._pause - time.monotonic()) if self._pause else 0.0):
                raise errors.StoreFailed("the store is closed")
            return self._attempt()

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    def close(self) -> None:
        """Close the connection. Later calls of `get` raise StoreFailed."""
        self._closed.set()
        with self._lock:
            if self._connection is not None:
                self._connection.close()

    def _attempt(self) -> Connection:
        connection: Connection | None = None
        try:
            connection = self._connect()
            self._prepare(connection)
        except Exception as error:
            if connection is not None:
                connection.close()
            self._failure = Unreachable.of(error) if isinstance(error, psycopg.OperationalError) else failure(error)
            self._failed_at, self._pause = time.monotonic(), self._pauses.next()
            raise self._failure from error
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._failure, self._pause = None, 0.0
        self._pauses.reset()
        self._connection = connection
        return connection
