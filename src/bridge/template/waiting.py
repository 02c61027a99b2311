"""Connections that have no worker: those that have not sent anything yet, and those that get none."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from bridge import errors
from bridge._dispatch import timestamp
from bridge.wire._frames import format_of
from bridge.wire.codec import JSON
from bridge.wire.messages import failure

LONGEST_REFUSED = 1 << 16  # bytes of a request in which its id is looked for


class Waiting:
    """A connection that has not sent anything. ends_at: when it is closed if that stays so, in time.monotonic()."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.ends_at = time.monotonic() + seconds

    def has_spoken(self) -> bool:
        """Return whether the peer has sent something; False if it has closed the connection."""
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False


def refuse(connection: socket.socket, error: errors.BridgeError) -> None:
    """Answer the first request of a connection with `error`, and close the connection.

    Does not wait: a request that has not arrived as a whole is answered without its id.
    """
    with connection, contextlib.suppress(OSError):
        request = connection.recv(LONGEST_REFUSED)
        while request[:4] == bytes(4):
            request = request[4:]  # heartbeats
        payload = request[4 : 4 + int.from_bytes(request[:4], "big")]
        format = format_of(payload) or JSON
        reply = format.encode(failure(format.find_id(payload) if payload else None, error, timestamp()))
        connection.send(struct.pack(">I", len(reply)) + reply)


def prepare_to_refuse() -> None:
    """Load what `refuse` needs: when a worker cannot be started, a module cannot be loaded either."""
    peer, connection = socket.socketpair()
    with peer:
        peer.send(b"\0\0\0\2{}")
        refuse(connection, errors.Overloaded("an example", retry_after=errors.RETRY_AFTER))
