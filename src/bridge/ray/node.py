"""The actor of a node: it holds the node's pool, and one end of the tunnel to the host."""

from __future__ import annotations

import socket
import sys
from typing import Any

import msgspec
import ray

from bridge.errors import BridgeError, text_of
from bridge.ray.server import Server
from bridge.ray.tunnel import CHUNK

# How many calls of each kind of method run at a time. The bytes of frames keep their order, and wait for nothing but
# each other; no method waits for a call of a worker.
GROUPS = {"requests": 1, "replies": 1, "control": 2}


class NodeActor:
    """The pool of one node. Its methods take and return bytes, so that Ray has nothing of a call to describe."""

    def __init__(self) -> None:
        self._server: Server | None = None
        self._end: socket.socket | None = None

    @ray.method(concurrency_group="control")
    def open(self, options: bytes) -> bytes:
        """Start a pool in the place of the one before, and return an error, or nothing.

        options: of `Pool`, as MessagePack. The answer is a map with `error`, `code`, `category` and `details`.
        """
        if self._server is not None:
            self._server.stop(0.0)
        given: dict[str, Any] = msgspec.msgpack.decode(options)
        if isinstance(given["workers"], list):
            given["workers"] = tuple(given["workers"])
        given.setdefault("python", sys.executable)
        ours, self._end = socket.socketpair()
        try:
            self._server = Server(ours, given)
        except (BridgeError, TypeError, ValueError, OSError) as error:
            ours.close()
            self._end.close()
            code, category = getattr(error, "code", "worker_crashed"), getattr(error, "category", "initialization")
            failure = {"error": text_of(error), "code": code, "category": category}
            return msgspec.msgpack.encode({**failure, "details": getattr(error, "details", {})})
        self._server.start()
        return b""

    @ray.method(concurrency_group="requests")
    def deliver(self, data: bytes) -> None:
        """Take bytes of the host's frames."""
        assert self._end is not None
        self._end.sendall(data)

    @ray.method(concurrency_group="requests")
    def finish(self) -> None:
        """Take no more frames. The open calls have a grace period."""
        assert self._end is not None
        self._end.shutdown(socket.SHUT_WR)

    @ray.method(concurrency_group="replies")
    def collect(self) -> bytes:
        """Return the next bytes of frames to the host, waiting for some; none at the end of the connection."""
        assert self._end is not None
        return self._end.recv(CHUNK)
