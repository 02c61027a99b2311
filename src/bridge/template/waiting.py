"""Connections that have no worker: those that have sent no request yet, and those that get none."""

from __future__ import annotations

import contextlib
import socket
import struct
import time

from bridge import errors
from bridge._dispatch import timestamp
from bridge.health import HEARTBEAT
from bridge.wire._frames import format_of
from bridge.wire.codec import JSON
from bridge.wire.messages import failure

MOST_HEARTBEATS = 1024  # that are answered at once
LONGEST_REFUSED = 1 << 16  # bytes of a request in which its id is looked for


class Waiting:
    """A connection without a worker. ends_at: when it is closed if it stays silent, in time.monotonic()."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.keep(seconds)

    def keep(self, seconds: float) -> None:
        """Let the connection be silent for `seconds` from now on."""
        self.ends_at = time.monotonic() + seconds

    def answer_heartbeats(self) -> bool:
        """Answer the heartbeats with which what the peer has sent begins. Return whether it has sent only those.

        Raises OSError if the peer has closed the connection, or does not read the answers.
        """
        received = self.connection.recv(MOST_HEARTBEATS * len(HEARTBEAT), socket.MSG_PEEK)
        if not received:
            raise ConnectionResetError
        heartbeats = _heartbeats(received)
        if heartbeats:
            self.connection.recv(len(heartbeats))
            if self.connection.send(heartbeats) < len(heartbeats):
                raise BlockingIOError
        return len(heartbeats) == len(received)


def refuse(connection: socket.socket, error: errors.BridgeError) -> None:
    """Answer the first request of a connection with `error`, and close the connection.

    Does not wait: a request that has not arrived as a whole is answered without its id.
    """
    with connection, contextlib.suppress(OSError):
        request = connection.recv(LONGEST_REFUSED)
        request = request[len(_heartbeats(request)) :]
        payload = request[4 : 4 + int.from_bytes(request[:4], "big")]
        format = format_of(payload) or JSON
        reply = format.encode(failure(format.find_id(payload) if payload else None, error, timestamp()))
        connection.send(struct.pack(">I", len(reply)) + reply)


def _heartbeats(received: bytes) -> bytes:
    """Return the heartbeats with which `received` begins."""
    zeros = len(received) - len(received.lstrip(b"\0"))
    return received[: zeros - zeros % len(HEARTBEAT)]


def prepare_to_refuse() -> None:
    """Load what `refuse` needs: when a worker cannot be started, a module cannot be loaded either."""
    peer, connection = socket.socketpair()
    with peer:
        peer.send(b"\0\0\0\2{}")
        refuse(connection, errors.Overloaded("an example", retry_after=errors.RETRY_AFTER))
