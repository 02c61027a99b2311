"""The client of a worker for asyncio: start it or connect to it, call it from the tasks of one event loop, stop it.

async with await Client.start() as client:
    await client.call("ping")
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NoReturn

from bridge import errors
from bridge.host.client import STOP_TIMEOUT
from bridge.host.connect import PAUSE, Attempt
from bridge.host.connection import Settings
from bridge.host.functions import NONE, Named, functions
from bridge.host.launch import launch
from bridge.host.looped import AwaitedCall, LoopedConnection
from bridge.host.open_calls import CallCancelled
from bridge.host.timeouts import START_TIMEOUT, seconds_of
from bridge.host.tools import Callables, Tool
from bridge.host.worker import Worker
from bridge.options import DEFAULT_MAX_FRAME, DEFAULT_MAX_VALUES

__all__ = ["Client", "Stream"]


class Client:
    """A worker and the connection to it, for the tasks of one event loop.

    Make one with `await Client.start()` or `await Client.connect()`. As an asynchronous context manager it stops its
    worker at the end. A client belongs to the event loop and the process that made it: elsewhere, every method raises
    RuntimeError. Cancelling a task cancels the call that it waits for, in the worker too.
    """

    def __init__(self, connection: LoopedConnection) -> None:
        self._connection = connection
        self._guard = _stop_at_the_end(connection)

    @classmethod
    async def start(
        cls,
        *,
        adapter: str = "dspy",
        python: str = sys.executable,
        flags: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        format: str = "msgpack",
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        tools: Callables = (),
        logs: Literal["stderr", "logging"] = "stderr",
        timeout: float | None = START_TIMEOUT,
    ) -> Client:
        """Start a worker, and wait until it answers.

        adapter: "dspy", "echo" or "module:attr". python: the worker's interpreter. flags: further
        flags of `python -m bridge worker`. env: variables added to this process's environment.
        format: "json", "msgpack" or "etf". max_frame: bytes in a frame, in both directions.
        max_values: values in a frame, in both directions. tools: passed to `register_tools`. logs:
        where the worker's logs go once it runs: to this process's stderr, or to the loggers of
        `logging` that have the names of the worker's. timeout: seconds, None to wait forever.
        Raises WorkerCrashed (category initialization) with the way the worker ended and, in
        `details["stderr"]`, the last lines of its output; TypeError and ValueError for invalid
        options.
        """
        settings = Settings.checked(format, max_frame, max_values, logs)
        seconds_of(timeout)
        return await cls._of(launch(adapter, python, flags, env, max_frame, max_values), settings, tools, timeout)

    @classmethod
    async def connect(
        cls,
        address: str,
        *,
        format: str = "msgpack",
        max_frame: int = DEFAULT_MAX_FRAME,
        max_values: int = DEFAULT_MAX_VALUES,
        tools: Callables = (),
        logs: Literal["stderr", "logging"] = "stderr",
        timeout: float | None = START_TIMEOUT,
    ) -> Client:
        """Connect to a server of workers, and wait until the worker that it provides answers.

        address: "unix:" and the path of the server's socket. Each client has a worker of its own, which ends with the
        connection. logs: "stderr" leaves the worker's logs to the server. The other options are those of `start`; the
        server has limits of its own, and the client sends no longer frames than the server accepts.
        Raises WorkerCrashed (category initialization) with the reason and what to do; the worker's own error if it
        answers with one, such as Overloaded; TypeError and ValueError for invalid options.
        """
        settings = Settings.checked(format, max_frame, max_values, logs)
        attempt = Attempt(address, seconds_of(timeout))
        while (worker := attempt.connect()) is None:
            await asyncio.sleep(PAUSE)
        return await cls._of(worker, settings, tools, attempt.seconds_left)

    @classmethod
    async def _of(cls, worker: Worker, settings: Settings, tools: Callables, timeout: float | None) -> Client:
        """Return a client of a worker that has answered it. Raises the errors of `start` or `connect`."""
        try:
            client = cls(LoopedConnection(worker, settings))
        except BaseException as error:
            worker.discard()
            if isinstance(error, OSError):
                worker.fail_start(error)
            raise
        try:
            await anext(client._guard)
            hello = await client.call("hello", {"offers": client._connection.offers}, timeout=timeout)
            client._connection.introduce(hello)
            if tools:
                await client.register_tools(tools)
        except BaseException as error:
            await client.kill()
            if isinstance(error, errors.BridgeError):
                worker.fail_start(error)
            raise
        return client

    @property
    def pid(self) -> int | None:
        """Return the worker's process id; None for a connection whose worker has not reported it."""
        return self._connection.worker.pid

    async def call(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = 30.0,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        """Call `command`, and return its result.

        timeout: seconds, including the time to send the request; None to wait forever. traceparent: the caller's span,
        in W3C Trace Context format.
        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded after `timeout` (the call
        is cancelled, a later reply is dropped); WorkerCrashed if the worker has ended. If the task is cancelled, as by
        `asyncio.timeout`, the call is cancelled too.
        """
        call = self._open(command, timeout)
        try:
            self._connection.start(call, args, session_id, traceparent)
            if not call.has_ended:
                await call.changed()
            return call.outcome()
        except BaseException:
            call.cancel()
            raise

    def stream(
        self,
        command: str,
        args: Any = None,
        *,
        timeout: float | None = None,
        session_id: str | None = None,
        traceparent: str | None = None,
    ) -> Stream:
        """Start `command`, and return its events to iterate over with `async for`.

        timeout: seconds until the call ends, including the time to send the request. traceparent: the caller's span, in
        W3C Trace Context format. Raises the errors of `call` if the request cannot be sent.
        """
        call = self._open(command, timeout, has_events=True)
        self._connection.start(call, args, session_id, traceparent)
        return Stream(self, call)

    async def register_tools(self, tools: Callables, *, session_id: str | None = None) -> None:
        """Offer Python functions to the session's programs, by their names.

        The language model sees their annotations and docstrings; its arguments are converted to the annotated types.
        Async functions run as tasks of the event loop, and are cancelled if the call that uses them ends. Plain
        functions run on separate threads. Both have the context variables of the call that uses them. Raises TypeError
        for a callable that cannot be a tool.
        """
        connection = self._connection
        connection.check_loop()
        known = [Tool(function, can_await=True) for function in tools]
        connection.offers["tools"] = True
        await self.call("hello", {"offers": connection.offers})
        declared = [tool.declaration for tool in known]
        done = await self.call("register_tools", {"tools": declared}, session_id=session_id)
        connection.functions.add(done["session_id"], known)

    async def register(
        self,
        *,
        models: Named = NONE,
        metrics: Named = NONE,
        rewards: Named = NONE,
        embedders: Named = NONE,
        session_id: str | None = None,
    ) -> None:
        """Let the session's programs call Python functions, as `bridge.Client.register` does.

        Async functions and async iterators run as tasks of the event loop, and are cancelled if the call that uses them
        ends. Plain functions run on separate threads. Both have the context variables of the call that uses them.
        """
        connection = self._connection
        connection.check_loop()
        known = functions(models, metrics, rewards, embedders, can_await=True)
        connection.offers["tools"] = True
        await self.call("hello", {"offers": connection.offers})
        connection.functions.add(session_id, known)

    async def cast(self, command: str, args: Any = None, *, session_id: str | None = None) -> None:
        """Send `command` without waiting for its reply, which is dropped. Raises WorkerCrashed."""
        await self._connection.send(self._open(command, None), args, session_id)

    async def stats(self) -> dict[str, Any]:
        """Return the worker's statistics: the result of `get_stats`."""
        result: dict[str, Any] = await self.call("get_stats")
        return result

    async def stop(self, timeout: float | None = STOP_TIMEOUT) -> int | None:
        """Stop the worker after the grace period for its open calls, and return its exit status.

        Kills it and its children after `timeout` seconds, or at once if the task is cancelled. A connection is closed
        instead: its worker ends by itself, and the status, which only the server knows, is None. Calls after this raise
        WorkerCrashed.
        """
        self._connection.check_loop()
        seconds = seconds_of(timeout)
        try:
            return await self._connection.close("the client was stopped", seconds)
        finally:
            await self._guard.aclose()

    async def kill(self) -> int | None:
        """Kill the worker and its children, and return its exit status. Close a connection at once, and return None."""
        return await self.stop(0.0)

    def _open(self, command: str, timeout: float | None, has_events: bool = False) -> AwaitedCall:
        """Return a new call. Raises RuntimeError outside of the client's event loop, and in a fork."""
        self._connection.check_loop()
        return AwaitedCall(self._connection, command, seconds_of(timeout), has_events)

    async def __aenter__(self) -> Client:
        self._connection.check_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        connection = self._connection
        if connection.worker.is_usable and connection.end_reason is None:
            warning = f"{self!r} was not stopped"
            connection.abandon("nothing refers to its client")
            with contextlib.suppress(StopIteration):  # here, because the loop would start a task for it
                self._guard.aclose().send(None)
            warn(warning, ResourceWarning, source=self)

    def __repr__(self) -> str:
        state = self._connection.end_reason or "running"
        if not self._connection.worker.is_usable:
            state = "of another process"
        return f"<aio.Client {self._connection.worker.name} format={self._connection.format.name}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Client cannot be pickled: start one in each process")


class Stream:
    """The events of a call as they arrive: iterate over (event, data) with `async for`, then await the result.

    The worker is paused while more than 256 events wait to be consumed. A loop that ends early, by `break` or by an
    exception, closes the stream; so do leaving it as an asynchronous context manager and cancelling a task that waits
    for it.
    """

    def __init__(self, client: Client, call: AwaitedCall) -> None:
        self._client = client  # whose worker is killed if nothing refers to it anymore
        self._connection = client._connection
        self._call = call
        self._outcome: tuple[Any, BaseException | None] | None = None

    async def __aiter__(self) -> AsyncIterator[tuple[str, Any]]:
        try:
            while (event := await self._next()) is not None:
                yield event
        finally:
            self._close()  # does nothing after the last event

    async def result(self) -> Any:
        """Wait for the end of the call, and return its result. Raises the errors of `Client.call`.

        The worker is not paused from then on: events that have not been consumed stay in memory.
        """
        self._connection.check_loop()
        self._call.lift_limit()
        try:
            while not self._call.has_ended:
                await self._call.changed()
        except BaseException:
            self._close()
            raise
        if self._outcome is None:
            try:
                self._outcome = self._call.outcome(), None
            except BaseException as error:
                self._outcome = None, error
        result, failure = self._outcome
        if failure is not None:
            raise failure
        return result

    def cancel(self) -> bool:
        """Cancel the call, and return whether it is cancelled now. Events that have arrived stay available."""
        self._connection.check_loop()
        self._call.cancel()
        return isinstance(self._call.error, CallCancelled)

    async def aclose(self) -> None:
        """Cancel the call if it has not ended, and drop events that have not been consumed."""
        self._connection.check_loop()
        self._close()

    async def __aenter__(self) -> Stream:
        self._connection.check_loop()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        self._connection.drop(self._call)

    def __repr__(self) -> str:
        state = "ended" if self._call.has_ended else "open"
        return f"<aio.Stream {self._call.id} {self._call.command}: {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled: it belongs to a Client in this process")

    async def _next(self) -> tuple[str, Any] | None:
        """Wait for the next event and remove it. Return None after the last one, or when the call's timeout is over."""
        self._connection.check_loop()
        call = self._call
        while True:
            has_ended = call.has_ended  # before looking for an event: none is added after the end
            if call.events:
                event = call.take_event()
                if event is not None:
                    return event
            elif has_ended:
                return None
            else:
                call.awaits_event = True
                await call.changed()

    def _close(self) -> None:
        self._call.drop_events()
        self._call.cancel()


async def _stop_at_the_end(connection: LoopedConnection) -> AsyncGenerator[None, None]:
    """Stop the worker when the loop is about to be closed: `asyncio.run` closes generators that have been started."""
    try:
        yield
    finally:
        if connection.end_reason is None:
            await connection.close("the event loop was closed", STOP_TIMEOUT)
