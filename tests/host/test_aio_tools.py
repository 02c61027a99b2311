"""Tools of the asyncio client: async functions as tasks, plain ones on threads."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import datetime
import functools
import logging
import threading

import pytest

from bridge import errors

USER = contextvars.ContextVar("USER", default="nobody")


async def use(client, tool, args=None):
    """Register a tool, and let the worker call it."""
    await client.register_tools([tool])
    return await client.call("use_tool", {"name": getattr(tool, "__name__", "Later"), "args": args or {}})


async def after(days: int, day: datetime.date) -> str:
    """Return a later day."""
    await asyncio.sleep(0)
    return str(day + datetime.timedelta(days))


class Later:
    async def __call__(self, days: int) -> str:
        return await after(days, datetime.date(2024, 1, 1))


def test_async_functions_are_tools(run):
    """So are objects whose call is async; arguments are converted, and wrong ones are one line for the model."""

    async def test(client):
        assert await use(client, after, {"days": 1, "day": "2024-02-28"}) == "2024-02-29"
        assert await use(client, Later(), {"days": 1}) == "2024-01-02"
        with pytest.raises(errors.InvalidArgs, match=r"argument 'days': expected an integer, got 'x'"):
            await use(client, after, {"days": "x", "day": "2024-02-28"})
        (declared,) = [tool for tool in await client.call("declared_tools") if tool["name"] == "after"]
        assert declared["description"] == "Return a later day."

    run(test)


def test_tools_at_the_start(run):
    """They are registered before the first call."""

    async def test(client):
        args = {"days": 1, "day": "2024-02-28"}
        return await client.call("use_tool", {"name": "after", "args": args})

    assert run(test, tools=[after]) == "2024-02-29"


def test_a_tool_may_call_the_client(run):
    """The loop goes on while tools wait for each other's calls."""

    async def test(client):
        async def ask(depth: int) -> int:
            if depth == 0:
                return 0
            return 1 + await client.call("use_tool", {"name": "ask", "args": {"depth": depth - 1}})

        await client.register_tools([ask])
        calls = (client.call("use_tool", {"name": "ask", "args": {"depth": 3}}) for _ in range(3))
        assert await asyncio.gather(*calls) == [3, 3, 3]

    run(test, flags=["--threads", "16"])


def test_plain_functions_run_on_threads(run):
    """A slow one does not block the loop; one that a decorator has hidden may still be async."""

    async def test(client):
        started, finish, threads = threading.Event(), threading.Event(), []

        def wait() -> str:
            threads.append(threading.current_thread())
            started.set()
            return "waited" if finish.wait(30) else "not"

        @functools.wraps(after)
        def decorated(*args, **options):
            return after(*args, **options)

        call = asyncio.create_task(use(client, wait))
        while not started.is_set():
            assert (await client.call("ping"))["status"] == "ok"
        finish.set()
        assert await call == "waited"
        assert threads[0] is not threading.current_thread()
        assert await use(client, decorated, {"days": 1, "day": "2024-02-28"}) == "2024-02-29"

    run(test)


def test_a_tool_has_the_context_of_the_call_that_uses_it(run):
    """This holds for calls of different tasks at the same time, and for tools on threads."""

    async def test(client):
        async def who() -> str:
            await asyncio.sleep(0.01)
            return USER.get()

        def who_on_a_thread() -> str:
            return USER.get()

        await client.register_tools([who, who_on_a_thread])

        async def ask(name: str, tool: str) -> str:
            USER.set(name)
            return await client.call("use_tool", {"name": tool})

        asked = [ask(f"{tool} {number}", tool) for number in range(5) for tool in ("who", "who_on_a_thread")]
        expected = [f"{tool} {number}" for number in range(5) for tool in ("who", "who_on_a_thread")]
        assert await asyncio.gather(*asked) == expected

    run(test)


class Own(BaseException):
    pass


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), StopAsyncIteration(), Own("mine")],
)
@pytest.mark.parametrize("is_async", [True, False])
def test_a_tool_that_raises_gets_a_reply(run, error, is_async, caplog):
    """The loop goes on, whatever is raised, and the stack is logged."""

    async def fail() -> None:
        raise error

    def fail_on_a_thread() -> None:
        raise error

    async def test(client):
        with pytest.raises(errors.HandlerError, match=type(error).__name__):
            await use(client, fail if is_async else fail_on_a_thread)
        (record,) = (record for record in caplog.records if record.name == "bridge")
        assert record.levelno == logging.ERROR
        assert record.exc_info[1] is error
        assert (await client.call("ping"))["status"] == "ok"

    run(test)


def test_a_tool_is_cancelled_with_the_call_that_uses_it(run, caplog):
    """That is no error of the tool, and is not logged as one."""

    async def test(client):
        started, ended = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            started.set()
            try:
                await asyncio.sleep(60)
            finally:
                ended.set()

        call = asyncio.create_task(use(client, wait))
        await started.wait()
        call.cancel()
        await ended.wait()
        while (await client.stats())["in_flight"]:
            await asyncio.sleep(0.01)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

    run(test)


def test_tools_end_with_the_worker(run):
    """One that stops the client gets its exit status; no task remains."""

    async def test(client):
        statuses, started = [], asyncio.Event()

        async def stop() -> None:
            statuses.append(await client.stop())

        async def wait() -> None:
            started.set()
            await asyncio.sleep(60)

        await client.register_tools([stop, wait])
        waiting = asyncio.create_task(client.call("use_tool", {"name": "wait"}))
        await started.wait()
        for call in (client.call("use_tool", {"name": "stop"}), waiting):
            with pytest.raises((errors.Cancelled, errors.WorkerCrashed)):
                await call
        while len(asyncio.all_tasks()) > 1:
            await asyncio.sleep(0.01)
        assert statuses == [0]

    run(test)


def test_callables_that_cannot_be_tools(run):
    """Registering one raises a TypeError with the reason."""

    async def items():
        yield 1

    async def test(client):
        with pytest.raises(TypeError, match="an async generator cannot be a tool"):
            await client.register_tools([items])
        with pytest.raises(TypeError, match="<lambda> cannot be the name of a tool"):
            await client.register_tools([lambda: 0])

    run(test)


def test_types_that_are_defined_beside_the_tool(run):
    """Annotations are text in this module, and local names are resolved when the tool is registered."""

    @dataclasses.dataclass
    class Local:
        x: int

    async def take(value: Local) -> int:
        return value.x

    async def test(client):
        assert Local
        assert await use(client, take, {"value": {"x": 5}}) == 5

    run(test)
