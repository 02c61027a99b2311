"""Fixtures that more than one test file of this folder uses."""

from __future__ import annotations

import pytest

from bridge import Client
from client_uses import SUPPORT_PATH


@pytest.fixture
def client():
    with Client.start(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client
