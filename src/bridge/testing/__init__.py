"""Doubles of workers, for the tests of applications. They need no DSPy, no model and no other process.

from bridge.testing import MockClient

with MockClient.start() as client:
    client.mock.set_response("answer", "Paris")
"""

from bridge.testing.clients import AsyncMockClient, MockClient, MockPool
from bridge.testing.script import Recorded
from bridge.testing.worker import Mock

__all__ = ["AsyncMockClient", "Mock", "MockClient", "MockPool", "Recorded"]
