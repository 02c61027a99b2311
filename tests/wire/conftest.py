"""Fixtures of the tests of the wire."""

from __future__ import annotations

import pytest

import arrays
from bridge import Dispatcher
from bridge.worker.control import control


@pytest.fixture
def dispatcher():
    dispatcher = Dispatcher(arrays.adapter, max_frame=1 << 20)
    dispatcher.add(control(dispatcher))
    return dispatcher
