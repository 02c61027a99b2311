"""Fixtures that more than one test file of this folder uses."""

from __future__ import annotations

import pytest


@pytest.fixture
def dispatcher():
    from bridge import Dispatcher
    from bridge.adapters.dspy import adapter

    return Dispatcher(adapter)
