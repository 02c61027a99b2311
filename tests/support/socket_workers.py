"""A server that starts a worker for each connection, with the socket as its stdin and stdout, as inetd does.

So the same tests can be about clients that have started their worker and clients that have connected to it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading

from bridge import Client, aio


class SocketWorkers:
    """Listens at `address` until `close`. processes: those that it has started."""

    def __init__(self, adapter="dspy", python=sys.executable, flags=(), env=None):
        self._folder = tempfile.TemporaryDirectory()
        self._command = [python, "-P", "-m", "bridge", "worker", "--adapter", adapter, *flags]
        self._env = {**os.environ, **(env or {})}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{self._folder.name}/s")
        self._listener.listen()
        self.address = f"unix:{self._folder.name}/s"
        self.processes = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                process = subprocess.Popen(
                    self._command, stdin=connection, stdout=connection, env=self._env, start_new_session=True
                )
            self.processes.append(process)

    def close(self):
        """Stop listening, and end the workers that still run."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for process in self.processes:
            process.kill()
            process.wait()
        self._folder.cleanup()


class Connecting:
    """Makes clients with the options of `Client.start`: each connects to a server of its own."""

    def __init__(self):
        self._servers = []

    def server(self, options):
        """Start a server with those of `options` that are not for the client, and remove them."""
        ours = {name: options.pop(name) for name in ("adapter", "python", "flags", "env") if name in options}
        self._servers.append(SocketWorkers(**ours))
        return self._servers[-1]

    def start(self, **options):
        return Client.connect(self.server(options).address, **options)

    async def start_async(self, **options):
        return await aio.Client.connect(self.server(options).address, **options)

    def close(self):
        for server in self._servers:
            server.close()
