"""The asyncio client: calls, cancelling, deadlines, streams, the end of its worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading

import pytest

from bridge import aio, errors
from client_uses import ENDLESS
from peer import is_running

BLOB = bytes(4 << 20)


async def until_idle(client):
    """Wait until the worker has no open call."""
    while (await client.stats())["in_flight"]:
        await asyncio.sleep(0.01)


def test_no_thread_is_started(run):
    """Neither the client nor its calls and streams need one."""
    before = set(threading.enumerate())

    async def test(client):
        await asyncio.gather(*(client.call("sleep", {"seconds": 0.01}) for _ in range(10)))
        assert [data async for _, data in client.stream("emit", {"size": 3})] == [0, 1, 2]
        return set(threading.enumerate()) - before

    assert run(test) == set()


def test_a_thousand_calls_in_flight(run):
    """Each gets its own reply, in whatever order the replies arrive."""

    async def test(client):
        sent = [{"number": number, "text": "x" * (number % 5000)} for number in range(1000)]
        commands = ["echo" if number % 3 else "echo_decoded" for number in range(1000)]
        assert await asyncio.gather(*map(client.call, commands, sent)) == sent

    run(test, adapter="echo")


@pytest.mark.parametrize("how", ["cancel", "timeout", "wait_for"])
def test_cancelling_a_task_cancels_its_call(run, how):
    """So do the timeouts of asyncio, with their own error."""

    async def test(client):
        call = asyncio.create_task(client.call("wait_politely", {"seconds": 60}))
        await asyncio.sleep(0.05)
        if how == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await call
        else:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.call("wait_politely", {"seconds": 60}), 0.05)
            call.cancel()
        await until_idle(client)

    run(test)


def test_a_call_that_is_cancelled_at_once(run):
    """It is not sent, or cancelled in the worker, whichever step it has reached."""

    async def test(client):
        for steps in range(5):
            calls = [asyncio.create_task(client.call("wait_politely", {"seconds": 60})) for _ in range(20)]
            for _ in range(steps):
                await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert all(call.cancelled() for call in calls)
        await until_idle(client)
        assert (await client.call("ping"))["status"] == "ok"

    run(test)


def test_cancelled_sends(run):
    """A request that was partly sent is finished, others are not sent; later calls get their own replies."""

    async def test(client):
        os.kill(client.pid, signal.SIGSTOP)
        calls = [asyncio.create_task(client.call("echo", {"blob": BLOB})) for _ in range(5)]
        cast = asyncio.create_task(client.cast("echo", {"blob": BLOB}))
        await asyncio.sleep(0.05)
        for task in (*calls, cast):
            task.cancel()
        await asyncio.wait((*calls, cast))
        assert cast.cancelled()
        with pytest.raises(errors.DeadlineExceeded):
            await client.call("ping", timeout=0.05)
        os.kill(client.pid, signal.SIGCONT)
        await until_idle(client)
        commands = (await client.stats())["commands"]
        assert commands["echo"]["calls"] == 1
        assert "ping" not in commands
        assert (await client.call("echo", {"blob": BLOB}))["blob"] == BLOB

    run(test)


def test_deadlines_of_many_calls(run):
    """Each call ends with DeadlineExceeded, also if the worker does not read."""

    async def test(client):
        os.kill(client.pid, signal.SIGSTOP)
        calls = [client.call("echo", {"blob": BLOB}, timeout=timeout) for timeout in (0.3, 0.1, 0.2, 0.1)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in ended] == [errors.DeadlineExceeded] * 4
        os.kill(client.pid, signal.SIGCONT)
        with pytest.raises(errors.DeadlineExceeded):
            await client.call("wait_politely", {"seconds": 60}, timeout=0.05)
        assert (await client.call("ping", timeout=None))["status"] == "ok"

    run(test)


async def leave_by_break(client):
    stream = client.stream("emit", ENDLESS)
    async for _ in stream:
        break
    with pytest.raises(errors.Cancelled):
        await stream.result()


async def leave_by_exception(client):
    async def raise_in_the_loop():
        async for _ in client.stream("emit", ENDLESS):
            raise LookupError

    with pytest.raises(LookupError):
        await raise_in_the_loop()


async def leave_by_timeout(client):
    async def consume():
        async for _ in client.stream("wait_politely", {"seconds": 60}):
            pass

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(consume(), 0.05)


async def stop_waiting_for_the_result(client):
    stream = client.stream("wait_politely", {"seconds": 60})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.result(), 0.05)
    with pytest.raises(errors.Cancelled):
        await stream.result()


async def leave_context(client):
    async with client.stream("emit", ENDLESS) as stream:
        await anext(aiter(stream))


async def close(client):
    async with contextlib.aclosing(client.stream("emit", ENDLESS)) as stream:
        await anext(aiter(stream))
    assert [event async for event in stream] == []


async def cancel(client):
    stream = client.stream("emit", ENDLESS)
    assert stream.cancel()
    assert stream.cancel()
    with pytest.raises(errors.Cancelled):
        await stream.result()


async def drop(client):
    client.stream("emit", ENDLESS)


@pytest.mark.parametrize(
    "leave",
    [
        *(leave_by_break, leave_by_exception, leave_by_timeout, stop_waiting_for_the_result),
        *(leave_context, close, cancel, drop),
    ],
)
def test_a_stream_that_is_left_early_is_cancelled(run, leave):
    """This holds for each way to leave it."""

    async def test(client):
        await leave(client)
        await until_idle(client)

    run(test)


def test_streams_of_several_tasks(run):
    """A worker pauses the streams that are not consumed; two tasks may share one, and both may ask for the result."""

    async def test(client):
        slow, shared = client.stream("emit", {"size": 50_000}), client.stream("emit", {"size": 5000})

        async def consume():
            return [data async for _, data in shared]

        parts = await asyncio.gather(consume(), consume())
        assert sorted(parts[0] + parts[1]) == list(range(5000))
        assert await asyncio.gather(shared.result(), shared.result()) == [{"streaming": True}] * 2
        assert (await client.stats())["in_flight"] == 1
        assert [data async for _, data in slow] == list(range(50_000))
        assert repr(slow) == f"<aio.Stream {slow._call.id} emit: ended>"

    run(test)


def test_a_killed_worker_fails_what_is_open(run):
    """Calls, streams and later calls raise WorkerCrashed; the loop goes on."""

    async def test(client):
        stream = client.stream("wait_politely", {"seconds": 60})
        call = asyncio.create_task(client.call("sleep", {"seconds": 60}))
        await asyncio.sleep(0.05)
        os.kill(client.pid, signal.SIGKILL)
        assert [event async for event in stream] == []
        for waiting in (stream.result(), call, client.call("ping"), client.cast("ping"), client.stats()):
            with pytest.raises(errors.WorkerCrashed, match="SIGKILL"):
                await waiting
        with pytest.raises(errors.WorkerCrashed):
            client.stream("ping")
        assert await client.stop() == -signal.SIGKILL

    run(test)


def test_a_stop_that_is_cancelled_kills_the_worker(run):
    """Nothing is left behind."""

    async def test(client):
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.stop(None)
        assert not is_running(client.pid)

    run(test)


def test_a_start_that_is_cancelled_leaves_no_worker(tmp_path):
    """The worker is killed before the cancellation goes on."""
    pid = tmp_path / "pid"
    launcher = tmp_path / "python"
    launcher.write_text(f"#!/bin/sh\necho $$ >{pid}\nexec sleep 60\n")
    launcher.chmod(0o755)

    async def main():
        start = asyncio.create_task(aio.Client.start(python=str(launcher)))
        while not (pid.exists() and pid.read_text()):
            await asyncio.sleep(0.01)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    asyncio.run(main())
    assert not is_running(int(pid.read_text()))


def test_logs_are_records_of_logging(run, caplog):
    """Those of the worker's last moments too."""

    async def test(client):
        with pytest.raises(errors.HandlerError):
            await client.call("raise")

    run(test, logs="logging")
    (record,) = [record for record in caplog.records if record.getMessage() == "handler of raise failed"]
    assert (record.name, record.levelname, record.command) == ("bridge.worker", "WARNING", "raise")
