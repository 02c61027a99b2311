"""Fixtures of the tests of the wire."""

from __future__ import annotations

import pytest

import arrays
from bridge import Client, Dispatcher, Options
from tensor_frames import FORMATS


@pytest.fixture
def dispatcher():
    return Dispatcher(arrays.adapter, Options(max_frame=1 << 20))


@pytest.fixture(scope="module", params=FORMATS)
def client(request, support):
    with Client.start(adapter="arrays:adapter", format=request.param, env={"PYTHONPATH": support}) as client:
        yield client
