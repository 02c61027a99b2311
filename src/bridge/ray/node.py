"""The actor of a node: it holds the node's pool, and one end of the tunnel to the host."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from typing import Any

import msgspec
import ray

from bridge import errors
from bridge.errors import BridgeError
from bridge.ray.logs import silence_functions
from bridge.ray.server import Server
from bridge.ray.tunnel import pieces
from bridge.security.redaction import redact_in

# How many calls of each kind of method run at a time. The bytes of frames keep their order, and wait for nothing but
# each other; no method waits for a call of a worker.
GROUPS = {"requests": 1, "replies": 1, "control": 2}


class NodeActor:
    """The pool of one node. Its methods take and return bytes, so that Ray has nothing of a call to describe.

    Each pool has a number, with which what was sent to an earlier one, perhaps before a restart, is told apart.
    """

    def __init__(self) -> None:
        silence_functions()
        self._server: Server | None = None
        self._end: socket.socket | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._number = 0

    @ray.method(concurrency_group="control")
    def open(self, number: int, options: bytes) -> bytes:
        """Start a pool in the place of the one before, and return nothing, or an error.

        options: of `Pool`, as MessagePack. An error is a map with `error`, `code`, `category` and `details`.
        """
        self._close()
        given: dict[str, Any] = msgspec.msgpack.decode(options)
        if isinstance(given["workers"], list):
            given["workers"] = tuple(given["workers"])
        given.setdefault("python", sys.executable)
        ours, end = socket.socketpair()
        try:
            server = Server(ours, given)
        except (BridgeError, TypeError, ValueError, OSError) as error:
            ours.close()
            end.close()
            return _failure(error)
        server.start()
        self._server, self._end, self._pieces, self._number = server, end, pieces(end), number
        return b""

    @ray.method(concurrency_group="requests")
    def deliver(self, number: int, data: bytes) -> bool:
        """Take bytes of the host's frames, and return whether the pool is still there."""
        end = self._end_of(number)
        if end is None:
            return False
        with contextlib.suppress(OSError):  # the server has stopped, which `collect` reports
            end.sendall(data)
        return True

    @ray.method(concurrency_group="requests")
    def finish(self, number: int) -> None:
        """Take no more frames. The open calls have a grace period."""
        end = self._end_of(number)
        if end is not None:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_WR)

    @ray.method(concurrency_group="replies")
    def collect(self, number: int) -> bytes:
        """Return the next bytes of frames to the host, waiting for some; none at the end of the connection."""
        return next(self._pieces, b"") if number == self._number else b""

    def _end_of(self, number: int) -> socket.socket | None:
        return self._end if number == self._number else None

    def _close(self) -> None:
        """End the pool, if there is one."""
        self._number = 0
        if self._server is not None:
            self._server.stop(0.0)
        if self._end is not None:
            self._end.close()


def _failure(error: Exception) -> bytes:
    code, category = errors.WorkerCrashed.code, "initialization"
    if isinstance(error, BridgeError):
        code, category = error.code, error.category
    failure = {"error": errors.text_of(error), "code": code, "category": category}
    return msgspec.msgpack.encode({**failure, "details": redact_in(getattr(error, "details", {}))})
