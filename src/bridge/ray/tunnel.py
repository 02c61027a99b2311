"""The connection between the host and a node's actor: the bytes of frames, in both directions, in calls of Ray."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayError

from bridge import errors
from bridge.host.connect import WorkerSocket, not_connected
from bridge.ray import cluster

# Bytes in a call. Ray sends less than 100 KB with the call, and more through its object store, which costs as much as
# several calls, but hardly more for more bytes.
CHUNK = 90 * 1024
LEAST_STORED, MOST_STORED = 400 * 1024, 4 << 20
MOST_OPEN = 4  # calls with bytes that have not arrived

Actor = Any  # a handle


class NodeSocket(WorkerSocket):
    """A node's actor at the other end of a tunnel. kill: ends the actor. name: of the node."""

    input_closed = output_closed = "the node closed the connection"
    killed = "the node's actor was ended"

    def __init__(self, name: str, connected: socket.socket, kill: Callable[[], object]) -> None:
        self._kill = kill
        self.reason: str | None = None
        super().__init__(name, connected)

    def kill(self) -> None:
        """Close the connection at once, and end the actor with its workers."""
        super().kill()
        self._kill()

    def describe_end(self) -> str:
        """Return why the connection has ended, with the name of the node."""
        return f"node {self._address}: {self.reason or self.output_closed}"

    def fail_start(self, error: errors.BridgeError | OSError) -> None:
        """Raise WorkerCrashed (category initialization) unless `error` is the node's own, such as Overloaded."""
        if isinstance(error, errors.DeadlineExceeded | errors.WorkerCrashed | errors.InvalidFrame | OSError):
            raise not_connected(f"node {self._address}", errors.text_of(error)) from error


class Tunnel:
    """Passes on what one end of a socket gets to an actor, and the other way, on two threads.

    number: of the pool, see `NodeActor`. A failure of Ray ends it, and so the connection of `worker`, whose `reason` it
    sets.
    """

    def __init__(self, actor: Actor, number: int, end: socket.socket, worker: NodeSocket) -> None:
        self._actor = actor
        self._number = number
        self._end = end
        self._worker = worker
        self._running = 2
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the threads."""
        for job in (self._send, self._receive):
            threading.Thread(target=self._run, args=(job,), name="bridge-ray-tunnel", daemon=True).start()

    def _send(self) -> None:
        opened: deque[Any] = deque()
        for data in pieces(self._end):
            opened.append(cluster.call(self._actor.deliver, self._number, data))
            while len(opened) >= MOST_OPEN:
                if not cluster.wait_for(opened.popleft()):
                    self._worker.reason = "its actor was restarted"
                    raise ConnectionResetError
        cluster.call(self._actor.finish, self._number)

    def _receive(self) -> None:
        while data := cluster.wait_for(cluster.call(self._actor.collect, self._number)):
            self._end.sendall(data)
        self._shut_down()

    def _run(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException as error:
            if self._worker.reason is None and not isinstance(error, OSError):
                self._worker.reason = reason_of(error)
            self._shut_down()
        with self._lock:
            self._running -= 1
            if not self._running:
                self._end.close()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)  # and not only close: a fork of this process may hold the descriptor


def pieces(end: socket.socket) -> Iterator[bytes]:
    """Yield the bytes of frames that arrive at a socket, until its end, in pieces that Ray passes on fast."""
    lengths = Lengths()
    while data := end.recv(CHUNK):
        yield data
        left = lengths.left_after(data)
        while left >= LEAST_STORED:  # the rest of a long frame: as much as possible at a time
            data = _received(end, min(left, MOST_STORED))
            if not data:
                return
            yield data
            left = lengths.left_after(data)


class Lengths:
    """Follows the frames in a stream of bytes, each with its length in four bytes before it."""

    def __init__(self) -> None:
        self._left = 0
        self._header = b""

    def left_after(self, data: bytes) -> int:
        """Return how many bytes of the frame that `data` ends in are still to come."""
        position = 0
        while position < len(data):
            if self._left:
                taken = min(self._left, len(data) - position)
                self._left -= taken
            else:
                taken = min(4 - len(self._header), len(data) - position)
                self._header += data[position : position + taken]
                if len(self._header) == 4:
                    self._left, self._header = int.from_bytes(self._header, "big"), b""
            position += taken
        return self._left


def _received(end: socket.socket, size: int) -> bytes:
    """Return `size` bytes that are about to arrive, fewer if the stream ends."""
    data, count = bytearray(size), 0
    with memoryview(data) as view:
        while count < size and (received := end.recv_into(view[count:])):
            count += received
    return bytes(data[:count]) if count < size else bytes(data)


def reason_of(error: BaseException) -> str:
    """Return in a few words how Ray has failed, without Ray's description of the call."""
    if not ray.is_initialized():
        return "this process has ended its connection to the cluster"
    if isinstance(error, ActorUnavailableError):
        return "its actor cannot be reached"
    if isinstance(error, ActorDiedError) and error.actor_init_failed:
        return "its actor does not start: dspex-bridge has to be installed there, in the same version"
    if isinstance(error, ActorDiedError):
        return "its actor has ended"
    if isinstance(error, GetTimeoutError):
        return "its actor does not answer"
    if isinstance(error, RayError):
        return f"Ray failed: {type(error).__name__}"
    return errors.text_of(error)
