"""Learns from the server that another worker has taken a session.

This is a hint. What is missed while the connection is lost is noticed by the next call of the session.
"""

from __future__ import annotations

import contextlib
import os
import threading

import psycopg

from bridge import errors
from bridge.worker.stores.postgres.changes import CHANNEL, decoded
from bridge.worker.stores.postgres.connection import Connect, Connection, wait_readable
from bridge.worker.stores.postgres.link import Pauses
from bridge.worker.stores.protocol import OnTaken


class Listener:
    """Calls on_taken(session_id, epoch) on a thread of its own, on a connection of its own."""

    def __init__(self, connect: Connect, on_taken: OnTaken) -> None:
        self._connect = connect
        self._on_taken = on_taken
        self._closed = threading.Event()
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="bridge-store-listener", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        os.close(self._waker)
        self._thread.join()

    def _run(self) -> None:
        pauses = Pauses()
        pause = 0.0
        try:
            while not self._closed.wait(pause):
                with (
                    contextlib.suppress(psycopg.Error, errors.StoreFailed),
                    contextlib.closing(self._connect()) as connection,
                ):
                    connection.execute(f"LISTEN {CHANNEL}")
                    pauses.reset()
                    self._listen(connection)
                pause = pauses.next()
        finally:
            os.close(self._wake)

    def _listen(self, connection: Connection) -> None:
        while not self._closed.is_set():
            wait_readable([connection.fileno(), self._wake], None)
            if connection.is_lost:
                return
            while (notification := connection.pgconn.notifies()) is not None:
                with contextlib.suppress(ValueError):  # any role of the database may send anything
                    epoch, _, session_id = notification.extra.decode().partition(" ")
                    self._on_taken(decoded(bytes.fromhex(session_id)), int(epoch))
