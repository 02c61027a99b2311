"""A template that a test has started, and hosts that connect to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from typing import Any

from peer import DEADLINE, Host, Peer


class Served:
    """A template with a control pipe, and the connections to it."""

    def __init__(self, *flags: str, adapter: str = "echo", path: str | None = None, env: dict[str, str] | None = None):
        # Not the folder of pytest, whose path may be longer than that of a socket.
        self.folder = tempfile.mkdtemp(prefix="bridge-")
        self.path = path or os.path.join(self.folder, "s")
        command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", f"unix:{self.path}"]
        self.template = Peer(command=[*command, "--adapter", adapter, "--control", "json", *flags], env=env)
        self.connections: list[Host] = []
        self.messages: list[Any] = []
        self.ready = self.message("ready")

    @property
    def pid(self) -> int:
        """Return the process id of the template."""
        return self.template.process.pid

    def message(self, kind: str, **facts: Any) -> Any:
        """Return the next message of the template of this kind and with these facts, and remember the others."""
        while True:
            for index, message in enumerate(self.messages):
                if message["type"] == kind and message.items() >= facts.items():
                    return self.messages.pop(index)
            self.messages.append(self.template.receive(DEADLINE))

    def connect(self) -> Host:
        """Return a new connection."""
        self.connections.append(Host.connected(self.path))
        return self.connections[-1]

    def worker(self) -> tuple[Host, int]:
        """Return a new connection whose worker runs, and the worker's process id."""
        host = self.connect()
        return host, host.call("hello")["result"]["pid"]

    def finish(self) -> None:
        """End the template and its workers, whatever the test did."""
        for host in self.connections:
            with contextlib.suppress(OSError):
                host.close()
        self.template.finish()
        shutil.rmtree(self.folder, ignore_errors=True)
