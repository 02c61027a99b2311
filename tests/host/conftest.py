"""Fixtures that more than one test file of this folder uses.

Tests of what the synchronous and the asyncio client have in common use `start_client` and `any_client`; those of the
synchronous client alone use `client`.
"""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from bridge import Client
from client_uses import SUPPORT_PATH
from looped_client import LoopThread

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=["threads", *LOOPS], scope="module")
def start_client(request):
    """Return a function that starts a client of each kind, with the methods of the synchronous one."""
    if request.param == "threads":
        yield Client.start
        return
    thread = LoopThread(LOOPS[request.param])
    yield thread.start
    thread.close()


@pytest.fixture
def any_client(start_client):
    with start_client(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client


@pytest.fixture
def client():
    with Client.start(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client
