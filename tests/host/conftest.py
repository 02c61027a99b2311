"""Fixtures that more than one test file of this folder uses.

Tests of what the synchronous and the asyncio client have in common use `any_client` and `start_either`, or
`start_client` if they are about a worker that the client has started; those of the synchronous client alone use
`client`, those of the asyncio client `run`.
"""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from bridge import Client, aio
from client_uses import HANG, SUPPORT_PATH
from looped_client import LOOPS, LoopThread
from socket_workers import Connecting


def client_starter(kind, is_connecting):
    """Yield a function that starts a client of one kind, with the methods of the synchronous one."""
    connecting = Connecting()
    thread = LoopThread(LOOPS[kind]) if kind != "threads" else None
    if thread is None:
        yield connecting.start if is_connecting else Client.start
    else:
        yield partial(thread.start, connecting.start_async) if is_connecting else thread.start
        thread.close()
    connecting.close()


@pytest.fixture(params=["threads", *LOOPS], scope="module")
def start_client(request):
    """Return a function that starts a client of each kind, with the methods of the synchronous one."""
    yield from client_starter(request.param, False)


@pytest.fixture(params=["threads", "threads-socket", "asyncio", "asyncio-socket", "uvloop"], scope="module")
def start_either(request):
    """Return a function with the options of `start_client`. Some of its clients connect to their workers."""
    kind, _, end = request.param.partition("-")
    yield from client_starter(kind, end == "socket")


@pytest.fixture
def any_client(start_either):
    with start_either(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client


@pytest.fixture
def process_client(start_client):
    """Return a client that has started its worker."""
    with start_client(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client


@pytest.fixture(params=["process", "socket"])
def client(request):
    starter = client_starter("threads", request.param == "socket")
    with next(starter)(adapter="hostile:adapter", env=SUPPORT_PATH) as client:
        yield client
    next(starter, None)


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
