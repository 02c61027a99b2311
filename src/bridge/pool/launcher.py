"""How a pool gets its workers."""

from __future__ import annotations

from collections.abc import Callable

from bridge.host.client import Client
from bridge.host.tools import Tools


class Launcher:
    """Gets workers, which all call the same tools of the host. start: returns the client of a new worker."""

    def __init__(self, start: Callable[[], Client], tools: Tools) -> None:
        self._start = start
        self._tools = tools

    def launch(self) -> Client:
        """Return the client of a new worker. Raises the errors of `Client.start`."""
        client = self._start()
        connection = client._connection
        connection.tools = self._tools
        connection.offers["tools"] = True
        client.call("hello", {"offers": connection.offers})
        return client
