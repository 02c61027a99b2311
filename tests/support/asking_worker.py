"""A worker that calls its host: it answers `ask {command, args}` with the frames that the host sends for that call."""

from __future__ import annotations

import contextlib
import json
import struct
import threading

from fake_workers import FakeWorkers, frame


class AskingWorker(FakeWorkers):
    """cancelled: set when a host has cancelled a call."""

    def __init__(self, path):
        self.cancelled = threading.Event()
        super().__init__(path)

    def serve(self, connected):
        calls, frames = {}, {}

        def send(message):
            connected.sendall(frame(message))

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
