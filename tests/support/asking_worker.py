"""A worker that calls its host: it answers `ask {command, args}` with the frames that the host sends for that call."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading


class AskingWorker:
    """Listens at `address` until `close`. cancelled: set when a host has cancelled a call."""

    def __init__(self, path):
        self.address = f"unix:{path}"
        self.cancelled = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._accepted = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                connected, _ = self._listener.accept()
                self._accepted.append(connected)
                threading.Thread(target=self._serve, args=(connected,), daemon=True).start()

    def _serve(self, connected):
        calls, frames = {}, {}

        def send(message):
            payload = json.dumps(message).encode()
            connected.sendall(struct.pack(">I", len(payload)) + payload)

        with contextlib.suppress(OSError), connected.makefile("rb") as received:
            while header := received.read(4):
                message = json.loads(received.read(struct.unpack(">I", header)[0]) or "{}")
                command, own_id = message.get("command"), message.get("id")
                if command == "ask":
                    call_id = f"w{len(calls) + 1}"
                    calls[call_id], frames[call_id] = own_id, []
                    send({"id": call_id, "call_id": own_id, **message["args"]})
                elif command is not None:
                    if command == "cancel":
                        self.cancelled.set()
                    send({"id": own_id, "success": True, "result": {}})
                elif own_id in calls:
                    frames[own_id].append({key: each for key, each in message.items() if key != "id"})
                    if "success" in message:
                        send({"id": calls[own_id], "success": True, "result": frames[own_id]})

    def close(self):
        for each in (self._listener, *self._accepted):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
