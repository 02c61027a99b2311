"""A call: a future of its result, and a stream of its events."""

from __future__ import annotations

import concurrent.futures
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from math import inf
from threading import RLock
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

from bridge import errors
from bridge.host.events import Events
from bridge.host.launch import WorkerProcess
from bridge.host.threads import Threads
from bridge.host.timeouts import seconds_of
from bridge.wire.messages import Incoming

OnEvent = Callable[[str, Any], None]
SLACK = 0.25  # seconds to wait after a deadline for the worker's own reply to it


class CallCancelled(errors.Cancelled, concurrent.futures.CancelledError):
    """Raised for a call that `Call.cancel` has cancelled."""


class OpenCalls:
    """The open calls of a connection by their ids, and what a call needs of its connection.

    post(command, args): sends a request without waiting, and ignores its reply.
    lock: the lock that `post` takes; code that held a different one while posting could deadlock
    with a destructor that posts.
    threads: run listeners, callbacks and tools.
    """

    def __init__(self, process: WorkerProcess, post: Callable[[str, dict[str, Any]], None], lock: RLock) -> None:
        self.process = process
        self.post = post
        self.lock = lock
        self.by_id: dict[int, Call] = {}
        self.threads = Threads("bridge-callbacks")

    def claim(self, call: Call) -> bool:
        """Close a call, and return whether it was open. Only the code that gets True may end the call."""
        return self.by_id.pop(call.id, None) is not None

    @property
    def are_usable(self) -> bool:
        """Return whether the worker belongs to this process, which is neither a fork nor ending."""
        return self.process.is_own and not sys.is_finalizing()


class Call(concurrent.futures.Future[Any]):
    """A future of a call's result. Its exceptions are those of bridge.errors.

    Callbacks run on a separate thread, never on one that the connection needs.
    timing: where the worker spent the time, in µs, if the call asked for that.
    """

    # Class attributes: most calls never set these.
    timing: Mapping[str, float] = MappingProxyType({})
    deadline: float | None = None
    events: Events | None = None
    _timeout: float | None = None
    _listener: OnEvent | None = None
    _reply: Incoming | None = None

    def __init__(
        self,
        open_calls: OpenCalls,
        request_id: int,
        command: str,
        timeout: float | None,
        has_events: bool,
    ) -> None:
        super().__init__()
        self.id = request_id
        self.command = command
        self._open_calls = open_calls
        if timeout is not None:
            self._timeout = timeout
            self.deadline = monotonic() + timeout
        if has_events:
            self.events = Events(self._post, open_calls.lock)

    def cancel(self) -> bool:
        """Cancel the call, in the worker too, and return whether it is cancelled now.

        `result` raises Cancelled from then on.
        """
        self.check_process()
        if self._open_calls.claim(self):
            super().cancel()
            self.set_running_or_notify_cancel()
            self._end_events()
            self._post("cancel")
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds, and return the call's result.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when
        the call's own timeout is over; TimeoutError when `timeout` is; Cancelled after `cancel`.
        """
        return self._outcome(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait at most `timeout` seconds, and return the call's exception, or None if it succeeded.

        Raises TimeoutError for a call that has not ended, and Cancelled for a cancelled one.
        """
        error: BaseException | None = self._outcome(super().exception, timeout)
        return error

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Call cannot be pickled: it belongs to a Client in this process")

    @property
    def is_usable(self) -> bool:
        """Return whether the call belongs to this process, which is neither a fork nor ending."""
        return self._open_calls.are_usable

    def check_process(self) -> None:
        """Raise RuntimeError in a fork of the process that made the call."""
        self._open_calls.process.check_own()

    def listen(self, on_event: OnEvent) -> None:
        """Call on_event(event, data) for each event, in order, on a separate thread.

        Raises RuntimeError if no thread can be started.
        """
        self._listener = on_event
        self._open_calls.threads.run(self._listen)

    def add_event(self, event: str, data: Any) -> None:
        """Pass an event of the call to its consumer."""
        if self.events is not None:
            self.events.put(event, data)

    def settle(self, reply: Incoming) -> None:
        """End the call with its reply."""
        if self._listener is not None:
            self._reply = reply
            self._end_events()  # the listener's thread ends the call after the last event
        elif self._open_calls.by_id.pop(self.id, None) is not None:  # `claim`, inlined for speed
            self._conclude(reply)

    def fail(self, error: BaseException) -> bool:
        """End the call with `error`, and return whether it was open."""
        if not self._open_calls.claim(self):
            return False
        self.set_exception(error)
        self._end_events()
        return True

    def expire(self) -> None:
        """End the call with DeadlineExceeded, in the worker too."""
        text = f"no reply to {self.command} within {self._timeout} s"
        if self.fail(errors.DeadlineExceeded(text, timeout=self._timeout)):
            self._post("cancel")

    def take_event(self) -> tuple[str, Any] | None:
        """Wait for the next event; return None after the last one, or when the call's timeout is over."""
        self.check_process()
        assert self.events is not None
        try:
            return self.events.take(None if self.deadline is None else self.deadline + SLACK)
        except TimeoutError:
            self.expire()
            return None

    def _conclude(self, reply: Incoming) -> None:
        if reply.timing:
            self.timing = reply.timing
        if reply.success:
            self.set_result(reply.result)
        else:
            self.set_exception(errors.from_reply(reply.code, reply.error, reply.category, reply.details))
        if self.events is not None:
            self.events.end()

    def _listen(self) -> None:
        assert self._listener is not None
        try:
            while (event := self.take_event()) is not None:
                if self.done():
                    return
                self._listener(*event)
        except BaseException as error:
            if self.fail(error):
                self._post("cancel")
            return
        if self._reply is not None and self._open_calls.claim(self):
            self._conclude(self._reply)

    def _end_events(self) -> None:
        if self.events is not None:
            self.events.end()

    def _post(self, command: str) -> None:
        self._open_calls.post(command, {"id": self.id})

    def _invoke_callbacks(self) -> None:
        # Future calls this once, on the thread that ends the call, which may be the reader thread.
        if self._done_callbacks:  # type: ignore[attr-defined]
            try:
                self._open_calls.threads.run(super()._invoke_callbacks)  # type: ignore[misc]
            except RuntimeError:
                logging.getLogger("bridge").exception("cannot run the callbacks of %s", self)

    def _outcome(self, get: Callable[[float | None], Any], timeout: float | None) -> Any:
        """Wait with `get` until `timeout` or the call's own timeout is over."""
        if not self._open_calls.process.is_own:
            self.check_process()
        left = None if timeout is None else seconds_of(timeout, least=-inf)
        is_own_timeout = False
        if self.deadline is not None:
            own = self.deadline + SLACK - monotonic()
            if left is None or own < left:
                left, is_own_timeout = own, True
        try:
            return get(left)
        except concurrent.futures.CancelledError:
            if not self.cancelled():
                raise  # a listener has raised this
            raise CallCancelled("the caller cancelled the call") from None
        except TimeoutError:
            if is_own_timeout:
                self.expire()
            elif not self.done():
                raise
            return get(None)


class Stream:
    """The events of a call as they arrive: iterate over (event, data), then ask for the result.

    The worker is paused while more than `Events.LIMIT` events wait to be consumed. A loop that ends
    early, by `break` or by an exception, closes the stream; so does leaving it as a context manager.
    """

    def __init__(self, call: Call) -> None:
        assert call.events is not None
        self._call = call
        self._events = call.events

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        try:
            while (event := self._call.take_event()) is not None:
                yield event
        finally:
            self._close()  # does nothing after the last event

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds, and return the call's result. Raises the errors of `Call.result`.

        The worker is not paused from then on: events that have not been consumed stay in memory.
        """
        self._call.check_process()
        self._events.lift_limit()
        return self._call.result(timeout)

    def cancel(self) -> bool:
        """Cancel the call, and return whether it is cancelled now. Events that have arrived stay available."""
        return self._call.cancel()

    def close(self) -> None:
        """Cancel the call if it has not ended, and drop events that have not been consumed."""
        self._call.check_process()
        self._close()

    def __enter__(self) -> Stream:
        self._call.check_process()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        if hasattr(self, "_events"):
            self._close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled: it belongs to a Client in this process")

    def _close(self) -> None:
        if self._call.is_usable:
            self._events.clear()
            if not self._call.done():
                self._call.cancel()
