"""Fixtures that more than one test file of this folder uses."""

from __future__ import annotations

import pytest


@pytest.fixture
def dispatcher():
    from bridge import Dispatcher
    from bridge.adapters.dspy import adapter
    from bridge.worker.control import control

    dispatcher = Dispatcher(adapter)
    dispatcher.add(control(dispatcher))
    return dispatcher
