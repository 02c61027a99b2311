"""Clients whose workers are mocks: the real clients, connected to a `Mock`."""

from __future__ import annotations

from typing import Any, cast

from bridge import aio
from bridge.host.client import STOP_TIMEOUT, Client
from bridge.pool.options import Workers
from bridge.pool.pool import Pool
from bridge.testing.worker import Mock

# Options of `Client.start` and `Pool` about where workers come from.
_OF_PROCESSES = ("adapter", "python", "flags", "env", "connect", "template")


class MockClient(Client):
    """A `Client` whose worker is a mock, with the same methods.

    mock: what a test sets and reads. Replace `Client` by this class where an application starts its client.
    """

    mock: Mock
    _owns_mock = False

    @classmethod
    def start(cls, *, mock: Mock | None = None, **options: Any) -> MockClient:
        """Connect to a mock.

        mock: is not closed with this client; by default the client gets one of its own. options: those of
        `Client.start`, of which adapter, python, flags and env have no effect.
        """
        chosen = Mock() if mock is None else mock
        try:
            client = cast(MockClient, cls.connect(chosen.address, **_connecting(options)))
        except BaseException:
            if mock is None:
                chosen.close()
            raise
        client.mock, client._owns_mock = chosen, mock is None
        return client

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> Any:
        """End the connection, and the mock if it belongs to this client."""
        try:
            return super().stop(timeout)
        finally:
            if self._owns_mock:
                self.mock.close()


class AsyncMockClient(aio.Client):
    """A `bridge.aio.Client` whose worker is a mock, with the same methods; otherwise like `MockClient`."""

    mock: Mock
    _owns_mock = False

    @classmethod
    async def start(cls, *, mock: Mock | None = None, **options: Any) -> AsyncMockClient:
        """Connect to a mock, as `MockClient.start` does."""
        chosen = Mock() if mock is None else mock
        try:
            client = cast(AsyncMockClient, await cls.connect(chosen.address, **_connecting(options)))
        except BaseException:
            if mock is None:
                chosen.close()
            raise
        client.mock, client._owns_mock = chosen, mock is None
        return client

    async def stop(self, timeout: float | None = STOP_TIMEOUT) -> Any:
        """End the connection, and the mock if it belongs to this client."""
        try:
            return await super().stop(timeout)
        finally:
            if self._owns_mock:
                self.mock.close()


class MockPool(Pool):
    """A `Pool` whose workers are those of a mock, with the same methods; otherwise like `MockClient`.

    mock: is not closed with this pool; by default the pool gets one of its own.
    """

    def __init__(self, workers: Workers | None = None, *, mock: Mock | None = None, **options: Any) -> None:
        self._owns_mock = mock is None
        self.mock = Mock() if mock is None else mock
        try:
            super().__init__(workers, connect=self.mock.address, **_connecting(options))
        except BaseException:
            if self._owns_mock:
                self.mock.close()
            raise

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """End the connections, and the mock if it belongs to this pool."""
        try:
            super().stop(timeout)
        finally:
            if self._owns_mock:
                self.mock.close()


def _connecting(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in _OF_PROCESSES}
