"""A connection whose callers are tasks of one asyncio event loop. The loop watches the descriptors; there is no thread.

Only functions of the host that are not async run on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Coroutine
from contextvars import Context, copy_context
from functools import partial
from math import inf
from time import monotonic
from typing import Any

from bridge._framing import Outbox
from bridge.host.connection import Connection, Settings
from bridge.host.functions import AnyFunction, is_stream, joined, joined_later
from bridge.host.logs import log
from bridge.host.open_calls import OpenCall
from bridge.host.threads import Threads
from bridge.host.worker import Worker
from bridge.wire.messages import Incoming


class AwaitedCall(OpenCall):
    """An open call that tasks wait for.

    context: of the task that has made the call, if the host has functions. tasks: run such functions for the call.
    """

    __slots__ = ("context", "tasks", "waiters")

    channel: LoopedConnection

    def __init__(
        self, channel: LoopedConnection, command: str, timeout: float | None, has_events: bool = False
    ) -> None:
        super().__init__(channel, command, timeout, has_events, caller_waits=False)
        self.context: Context | None = None
        self.tasks: list[asyncio.Task[None]] = []
        self.waiters: list[asyncio.Future[None]] = []

    @property
    def last_moment(self) -> float | None:
        """Return when to stop waiting, in seconds of time.monotonic(): for the worker, or until the request is sent."""
        is_sent = self.outbox is None or self.outbox.sent == len(self.outbox)
        return super().last_moment if is_sent else self.deadline

    def changed(self) -> asyncio.Future[None]:
        """Return a future that is done when the call ends or, if it `awaits_event`, an event arrives."""
        waiter = self.channel.loop.create_future()
        self.waiters.append(waiter)
        return waiter

    def wake(self) -> None:
        """Wake the tasks that wait."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()

    def conclude(self) -> None:
        """Wake the tasks that wait for the end of the call, and cancel functions that still run for it."""
        self.wake()
        if self.tasks:
            self.channel.cancel_functions(self.tasks)


class LoopedConnection(Connection):
    """A connection to a worker, usable in the thread of its event loop."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self.loop = asyncio.get_running_loop()
        forward = partial(log, worker=worker) if settings.forwards_logs else None
        super().__init__(worker, settings, self.loop, forward)
        self._threads = Threads("bridge-functions")
        self._tasks: set[asyncio.Task[None]] = set()
        self._senders: list[tuple[Outbox, asyncio.Future[None]]] = []
        self._is_lost = asyncio.Event()
        self._next_check = inf
        self._timer: asyncio.TimerHandle | None = None
        self.inbox.take_over(True)
        self.transport.watch()

    def check_loop(self) -> None:
        """Raise RuntimeError in a fork of the process that started the worker, and outside of the event loop."""
        if not self.worker.is_own:
            self.worker.check_own()
        try:
            if asyncio.get_running_loop() is self.loop:
                return
        except RuntimeError:
            pass
        raise RuntimeError("this Client belongs to the event loop in which it was started; start another one here")

    def start(self, call: AwaitedCall, args: Any, session_id: str | None, traceparent: str | None) -> None:
        """Send the request of a call. What the worker does not accept at once is sent later.

        Raises NotEncodable and FrameTooLarge if the request cannot be encoded, WorkerCrashed if the worker has ended.
        """
        if self.functions:
            call.context = copy_context()  # cheap: contexts are immutable maps inside
        self.request(call, args, session_id, traceparent)
        if call.deadline is not None and call.deadline < self._next_check:
            self._expire_at(call.deadline)

    async def send(self, call: AwaitedCall, args: Any, session_id: str | None) -> None:
        """Send the request of a call, and wait until it has been sent. Raises the errors of `start`."""
        self.start(call, args, session_id, None)
        if (outbox := call.outbox) is None:
            return
        try:
            await self._sent(outbox)
            if outbox.sent < len(outbox):
                raise self.crashed()
        except BaseException:
            call.cancel()
            raise

    async def _sent(self, outbox: Outbox) -> None:
        """Wait until a frame has been sent, or will not be sent anymore."""
        sent = self.loop.create_future()
        self._senders.append((outbox, sent))
        await sent

    def progressed(self) -> None:
        """Wake the tasks whose frames have been sent, or will not be sent anymore."""
        waiting = []
        for outbox, sent in self._senders:
            if outbox.sent < len(outbox) and not self.transport.is_input_closed:
                waiting.append((outbox, sent))
            elif not sent.done():
                sent.set_result(None)
        self._senders = waiting

    def answer(self, request: Incoming) -> None:
        """Answer a call of the worker in a task, or on a thread if the function is not async.

        Raises RuntimeError if no thread can be started.
        """
        call = self.inbox.calls.get(request.call_id)  # type: ignore[arg-type]  # our ids are integers
        context = copy_context() if call is None or call.context is None else call.context.copy()
        try:
            function, given = self.functions.find(request)
        except Exception as error:
            self.post_frame(self.failure(request, error))
            return
        if not function.is_async:
            self._threads.run(lambda: context.run(self._answer_on_thread, request, function, given))
            return
        task = self.loop.create_task(self._answer(request, function, given), context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if call is not None:
            call.tasks.append(task)

    def cancel_functions(self, tasks: list[asyncio.Task[None]]) -> None:
        """Cancel the tasks that run functions of the host."""
        for task in tasks:
            if task in self._tasks:
                task.cancel()

    def lost(self) -> None:
        """Wake those who wait for the end of the worker, and cancel functions that still run."""
        if self._timer is not None:
            self._timer.cancel()
        self.cancel_functions(list(self._tasks))
        self._is_lost.set()

    async def close(self, reason: str, timeout: float | None) -> int | None:
        """End the worker after the pending frames, killing it after `timeout` seconds, and return its exit status.

        Kill it at once if the task is cancelled.
        """
        if (task := asyncio.current_task()) is not None:
            self._tasks.discard(task)  # a function that stops the client is not cancelled by that
        self.transport.close(reason)
        timer = None if timeout is None else self.loop.call_later(timeout, self.worker.kill)
        try:
            await self._is_lost.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if not self._is_lost.is_set():
                self.worker.kill()
                await self._is_lost.wait()
        return self.worker.exit_status

    def abandon(self, reason: str) -> None:
        """Kill a worker that nobody can use anymore. To be called in any thread, even after the loop was closed."""
        self.transport.is_abandoned = True
        self.transport.end_worker(reason)
        self.worker.wait()  # so that the loop notices it at once
        if self.loop.is_closed():
            self.worker.discard()

    def drop(self, call: AwaitedCall) -> None:
        """Cancel a call that nobody can use anymore. To be called in any thread, even after the loop was closed."""
        if self.worker.is_usable and not call.has_ended:
            with contextlib.suppress(RuntimeError):
                self.loop.call_soon_threadsafe(call.cancel)

    async def _answer(self, request: Incoming, function: AnyFunction, given: dict[str, Any]) -> None:
        """Reply to a call of the worker, whatever the function raises."""
        try:
            outbox = self.reply(request, await self._whole(request, function, function.call(given)))
        except BaseException as error:
            task = asyncio.current_task()
            is_cancelled = task is not None and task.cancelling()
            outbox = self.failure(request, error, is_logged=not is_cancelled)
        self.post_frame(outbox)

    def _answer_on_thread(self, request: Incoming, function: AnyFunction, given: dict[str, Any]) -> None:
        """Reply to a call of the worker, whatever the function raises."""

        def in_loop(coroutine: Coroutine[Any, Any, Any]) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

        try:
            result = function.call(given)
            if inspect.iscoroutine(result) or isinstance(result, AsyncIterator):  # which a decorator has hidden
                result = in_loop(self._whole(request, function, result))
            elif function.kind == "model" and is_stream(result):
                result = joined(result, lambda text: in_loop(self._announce(request, text)))
            outbox = self.reply(request, result)
        except BaseException as error:
            outbox = self.failure(request, error)
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self.loop.call_soon_threadsafe(self.post_frame, outbox)

    async def _whole(self, request: Incoming, function: AnyFunction, result: Any) -> Any:
        """Wait for what a function returns, and return it. Announce the pieces of a model's reply as they come."""
        if inspect.isawaitable(result):
            result = await result
        if function.kind != "model" or not is_stream(result):
            return result
        return await joined_later(result, partial(self._announce, request))

    async def _announce(self, request: Incoming, text: str) -> None:
        """Send a piece of a model's reply to a worker that wants it, and wait until it has been sent."""
        outbox = self.chunk(request, text)
        if outbox is not None:
            with contextlib.suppress(ConnectionError):  # the worker has ended
                if not self.transport.write(outbox):
                    await self._sent(outbox)

    def _expire_at(self, moment: float) -> None:
        """Check the deadlines of the open calls at `moment`, in seconds of time.monotonic()."""
        if self._timer is not None:
            self._timer.cancel()
        self._next_check = moment
        self._timer = self.loop.call_later(max(0.0, moment - monotonic()), self._expire_calls)

    def _expire_calls(self) -> None:
        """End the calls whose time is over, and check again at the next deadline.

        One timer serves all calls: setting and cancelling one for each would take a tenth of the time of a call.
        """
        self._next_check = inf
        if (moment := self.expire_calls()) < inf:
            self._expire_at(moment)
