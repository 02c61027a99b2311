"""Fixtures that more than one test file of this folder uses.

Tests of what the synchronous and the asyncio client have in common use `start_client` and `any_client`; those of the
synchronous client alone use `client`, those of the asyncio client `run`.
"""

from __future__ import annotations

import asyncio

import pytest

from bridge import Client, aio
from client_uses import HANG, SUPPORT_PATH
from looped_client import LOOPS, LoopThread


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


@pytest.fixture(params=LOOPS, name="run")
def run_in_loop(request):
    """Return a function that runs test(client) in a loop of each kind."""

    def run(test, **options):
        async def main():
            options.setdefault("adapter", "hostile:adapter")
            async with asyncio.timeout(HANG), await aio.Client.start(env=SUPPORT_PATH, **options) as client:
                return await test(client)

        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            return runner.run(main())

    return run
