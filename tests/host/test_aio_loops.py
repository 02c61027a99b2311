"""The asyncio client and its event loop: who may use it, and what happens at the end of the loop."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import subprocess
import sys

import pytest

from bridge import aio
from client_uses import HANG, SUPPORT_PATH, in_a_fork
from looped_client import LOOPS
from peer import is_running, wait_until

USES = {
    "call": lambda client: client.call("ping"),
    "cast": lambda client: client.cast("ping"),
    "stats": lambda client: client.stats(),
    "register_tools": lambda client: client.register_tools([]),
    "stop": lambda client: client.stop(),
    "kill": lambda client: client.kill(),
    "enter": lambda client: client.__aenter__(),
    "stream": lambda client: in_a_task(lambda: client.stream("ping")),
}


async def in_a_task(function):
    return function()


def names_that_do_not_raise(uses, client, text):
    """Return which uses do not raise a RuntimeError with `text` in a new loop."""
    names = []
    for name, use in uses.items():
        try:
            asyncio.run(use(client))
            names.append(name)
        except RuntimeError as error:
            if text not in str(error):
                names.append(name)
    return names


def stream_uses(stream):
    return {
        "result": lambda client: stream.result(),
        "iterate": lambda client: anext(aiter(stream)),
        "aclose": lambda client: stream.aclose(),
        "cancel": lambda client: in_a_task(stream.cancel),
    }


def test_a_client_belongs_to_its_loop(run):
    """In another loop, on another thread, each method raises an error that explains this."""

    async def test(client):
        uses = {**USES, **stream_uses(client.stream("emit", {"size": 3}))}
        wrong = await asyncio.to_thread(names_that_do_not_raise, uses, client, "belongs to the event loop")
        assert wrong == []
        with pytest.raises(RuntimeError, match="belongs to the event loop"):
            await asyncio.to_thread(client.stream, "ping")
        assert (await client.call("ping"))["status"] == "ok"

    run(test)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_client_belongs_to_its_process(run):
    """In a fork, each method raises an error that names the client's process; dropping it there stops nothing."""

    async def test(client):
        uses = {**USES, **stream_uses(client.stream("emit", {"size": 3}))}
        text = f"belongs to process {os.getpid()}"
        assert in_a_fork(lambda: names_that_do_not_raise(uses, client, text)) == "[]"
        assert in_a_fork(lambda: client.__del__()) == "None"
        assert (await client.call("ping"))["status"] == "ok"

    run(test)


def test_clients_and_streams_cannot_be_pickled(run):
    """The TypeError explains what to do; the repr has pid, format and state."""

    async def test(client):
        for value in (client, client.stream("ping")):
            for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(TypeError, match="cannot be pickled"):
                    attempt(value)
        assert repr(client) == f"<aio.Client pid={client.pid} format=msgpack: running>"
        await client.stop()
        assert repr(client) == f"<aio.Client pid={client.pid} format=msgpack: the client was stopped>"

    run(test)


@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_the_end_of_the_loop_stops_the_worker(loop_factory):
    """It is stopped with its grace period, although the program still holds the client."""

    async def main():
        return await aio.Client.start(adapter="hostile:adapter", env=SUPPORT_PATH)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        client = runner.run(main())
        assert is_running(client.pid)
    assert not is_running(client.pid)
    assert "the event loop was closed" in repr(client)


@pytest.mark.parametrize("is_closed", [False, True])
@pytest.mark.parametrize("loop_factory", LOOPS.values(), ids=LOOPS)
def test_a_client_that_nothing_refers_to(loop_factory, is_closed):
    """There is a ResourceWarning, and the worker is killed; no descriptor stays open, even if the loop was closed."""

    async def main():
        return await aio.Client.start(adapter="echo")

    loop = loop_factory()
    before = len(os.listdir("/proc/self/fd"))
    clients = [loop.run_until_complete(main())]
    pid = clients[0].pid
    if is_closed:
        loop.close()
    with pytest.warns(ResourceWarning, match=f"pid={pid} format=msgpack: running> was not stopped"):
        clients.clear()
    if not is_closed:
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
    assert not is_running(pid)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


ENDINGS = {
    "return": "",
    "exit": "raise SystemExit(0)",
    "os_exit": "os._exit(0)",
}


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_program_that_ends_with_open_calls_prints_nothing(loop, ending, kept):
    """Streams are partly read, tools and calls run; the worker ends with its host."""
    program = f"""
import asyncio, os, uvloop
from bridge import aio
kept = []

async def wait():
    await asyncio.sleep(60)

async def main():
    client = await aio.Client.start(adapter="hostile:adapter", tools=[wait])
    if {kept}:
        kept.append(client)
    events = aiter(client.stream("emit", {{"size": 100000}}))
    await anext(events)
    calls = [asyncio.create_task(client.call("use_tool", {{"name": "wait"}})) for _ in range(3)]
    await asyncio.sleep(0.1)
    print(client.pid, flush=True)
    {ENDINGS[ending] or "return"}

{"asyncio" if loop == "asyncio" else "uvloop"}.run(main())
"""
    env = {**os.environ, **SUPPORT_PATH}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=HANG, env=env)
    assert (result.stderr, result.returncode) == (b"", 0)
    wait_until(lambda: not is_running(int(result.stdout)))
