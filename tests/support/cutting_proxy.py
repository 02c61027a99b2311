"""A proxy before a PostgreSQL server that cuts connections at chosen points of an exchange.

An exchange is what a client sends until it waits, and what the server answers until it is ready for the next query.
"""

from __future__ import annotations

import contextlib
import enum
import select
import shutil
import socket
import tempfile
import threading
from pathlib import Path

WAIT = 60.0  # seconds


class Cut(enum.Enum):
    """Where a connection is cut."""

    UNSENT = "before the server gets anything of the request"
    PARTLY_SENT = "when the server has half of the request"
    SENT = "when the server has the request, which may still be running"
    UNANSWERED = "when the server has answered, before the client gets anything of that"
    PARTLY_ANSWERED = "when the client has half of the answer"
    LATE = "before the server gets the request, which arrives when `release` is called"


class CuttingProxy:
    """Relays between clients and the server that listens at the Unix socket in `target`.

    folder: where its own socket is, with the port in its name that the server's has.
    """

    def __init__(self, target: Path, port: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self.released = threading.Event()
        name = f".s.PGSQL.{port}"
        self._target = str(target / name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.folder / name))
        self._listener.listen(64)
        self._lock = threading.Lock()
        self._cut: Cut | None = None
        self._first = self._last = 0  # exchanges from now
        self._late: list[_Relay] = []
        self._relays: list[_Relay] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, where: Cut, exchange: int = 1, times: int = 1) -> None:
        """Cut the connection of the exchange with that number from now on, and those of the next times - 1."""
        self.released.clear()
        with self._lock:
            self._cut, self._first, self._last = where, exchange, exchange + times - 1

    def stop_cutting(self) -> bool:
        """Return whether any cut has been made since `cut`."""
        with self._lock:
            self._cut = None
            return self._first < 1

    def release(self) -> None:
        """Deliver the requests of LATE cuts, and wait until the server has done them."""
        self.released.set()
        while self._late:
            self._late.pop().join(WAIT)

    def close(self) -> None:
        self.release()
        _close(self._listener)
        for relay in self._relays:
            relay.close()
        shutil.rmtree(self.folder)

    def due(self, relay: _Relay) -> Cut | None:
        """Return where the exchange that begins now has to be cut."""
        with self._lock:
            if self._cut is None:
                return None
            self._first -= 1
            self._last -= 1
            if self._first >= 1 or self._last < 0:
                return None
            if self._cut is Cut.LATE:
                self._late.append(relay)
            return self._cut

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                try:
                    server.connect(self._target)
                except OSError:
                    client.close()
                    server.close()
                    continue
                relay = _Relay(self, client, server)
                self._relays.append(relay)
                relay.start()


class _Relay(threading.Thread):
    """Relays one connection."""

    def __init__(self, proxy: CuttingProxy, client: socket.socket, server: socket.socket) -> None:
        super().__init__(daemon=True)
        self._proxy = proxy
        self._client, self._server = client, server

    def run(self) -> None:
        with contextlib.suppress(OSError):
            self._server.sendall(self._client.recv(1 << 16))  # the start of a connection, whose messages differ
            self._client.sendall(_messages(self._server, b"ZE")[0])
            while self._relay():
                pass
        self.close()

    def close(self) -> None:
        _close(self._client)
        _close(self._server)

    def _relay(self) -> bool:
        """Relay an exchange, or what the server says between two. Return whether there may be another."""
        if self._server in select.select([self._client, self._server], [], [])[0]:
            news = self._server.recv(1 << 16)
            self._client.sendall(news)
            return bool(news)
        request, queries = _messages(self._client, b"SQX")
        if request[:1] == b"X":  # the client's end
            return False
        cut = self._proxy.due(self)
        if cut is Cut.LATE:
            _close(self._client)
            self._proxy.released.wait(WAIT)
        if cut is not Cut.UNSENT:
            self._server.sendall(request[: len(request) // 2] if cut is Cut.PARTLY_SENT else request)
        if cut in (Cut.UNSENT, Cut.PARTLY_SENT, Cut.SENT):
            return False
        answer, _ = _messages(self._server, b"Z", queries)
        if cut is Cut.UNANSWERED or cut is Cut.LATE:
            return False
        self._client.sendall(answer[: len(answer) // 2] if cut is Cut.PARTLY_ANSWERED else answer)
        return cut is None


def _messages(peer: socket.socket, last: bytes, count: int = 1) -> tuple[bytes, int]:
    """Read whole messages until at least `count` have a type in `last`. Return them and the number of those."""
    data, end, found = b"", 0, 0
    while found < count or end < len(data):
        more = peer.recv(1 << 16)
        if not more:
            raise ConnectionResetError
        data += more
        while end + 5 <= len(data) and end + 1 + int.from_bytes(data[end + 1 : end + 5]) <= len(data):
            found += data[end] in last
            end += 1 + int.from_bytes(data[end + 1 : end + 5])
    return data, found


def _close(peer: socket.socket) -> None:
    with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_RDWR)  # wakes the threads that wait for it
    peer.close()
