"""What stands for workers at a socket, in this process."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading


class FakeWorkers:
    """Listens at `address` until `close`. Subclasses have serve(connected), which is called on a thread of its own."""

    def __init__(self, path):
        self.address = f"unix:{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._accepted = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self):
        """Return how many there were."""
        return len(self._accepted)

    def close(self):
        for each in (self._listener, *self._accepted):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._listener.accept()
                self._accepted.append(connected)
                threading.Thread(target=self.serve, args=(connected,), daemon=True).start()


def frame(message):
    """Return a frame with a message in JSON."""
    payload = json.dumps(message).encode()
    return struct.pack(">I", len(payload)) + payload
