"""A call as its caller sees it: a future of its result, and the stream of its events."""

from __future__ import annotations

import concurrent.futures
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from math import inf
from threading import Condition, RLock
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

from bridge import errors
from bridge.host import process
from bridge.host.threads import Threads
from bridge.host.timeouts import seconds_of
from bridge.wire.messages import Incoming

OnEvent = Callable[[str, Any], None]
SLACK = 0.25  # seconds that a caller waits beyond a deadline for the worker's own answer to it


class CallCancelled(errors.Cancelled, concurrent.futures.CancelledError):
    """The call was cancelled by `Call.cancel`."""


class Events:
    """Events of one call between the reader thread and whoever takes them.

    hold("pause") and hold("resume") hold the worker back while more than `LIMIT` events wait.
    lock: a reentrant one.
    """

    LIMIT = 256

    def __init__(self, hold: Callable[[str], None], lock: RLock) -> None:
        self._hold = hold
        self._changed = Condition(lock)
        self._waiting: deque[tuple[str, Any]] = deque()
        self._is_paused = False
        self._is_unlimited = False
        self._has_ended = False

    def put(self, event: str, data: Any) -> None:
        """Add an event. Never waits."""
        with self._changed:
            if self._has_ended:
                return
            self._waiting.append((event, data))
            if len(self._waiting) > self.LIMIT and not (self._is_paused or self._is_unlimited):
                self._is_paused = True
                self._hold("pause")
            self._changed.notify()

    def take(self, deadline: float | None = None) -> tuple[str, Any] | None:
        """Wait for the next event; None behind the last one. deadline: of time.monotonic().
        Raises TimeoutError."""
        with self._changed:
            while not self._waiting:
                if self._has_ended:
                    return None
                left = None if deadline is None else deadline - monotonic()
                if not self._changed.wait(left):
                    raise TimeoutError
            if self._is_paused and len(self._waiting) <= self.LIMIT // 2:
                self._resume()
            return self._waiting.popleft()

    def lift_limit(self) -> None:
        """Let any number of events wait from now on."""
        with self._changed:
            self._is_unlimited = True
            if self._is_paused:
                self._resume()

    def end(self) -> None:
        """Let takers see the end, once they have taken what is there."""
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def clear(self) -> None:
        """Drop the events that wait."""
        with self._changed:
            self._waiting.clear()

    def _resume(self) -> None:
        self._is_paused = False
        self._hold("resume")


class CallTable:
    """The open calls of a client, and what they need of it.

    post(command, args): sends a request without waiting, and drops its reply. lock: the one that
    it takes; whoever posts while holding another one could wait for a destructor that waits for it.
    """

    def __init__(self, post: Callable[[str, dict[str, Any]], None], lock: RLock) -> None:
        self.open: dict[int, Call] = {}
        self.threads = Threads("bridge-callbacks")
        self.post = post
        self.lock = lock
        self.pid = process.current_pid

    def claim(self, call: Call) -> bool:
        """Return whether the call is open, and the caller the one to end it: that is true once."""
        return self.open.pop(call.id, None) is not None

    @property
    def is_usable_here(self) -> bool:
        """Whether this is the process that started the worker, no fork of it, and not ending."""
        return self.pid == process.current_pid and not sys.is_finalizing()

    def check_process(self) -> None:
        """Raise RuntimeError in another process than the client's own."""
        if self.pid != process.current_pid:
            raise RuntimeError(
                f"this Client belongs to process {self.pid} and cannot be used in its fork"
                f" {process.current_pid}; start another Client there"
            )


class Call(concurrent.futures.Future[Any]):
    """One call: a future of its result, whose exceptions are those of bridge.errors.

    Callbacks run on a thread of their own, never on one that the client needs. `timing` is filled
    where the call asked for it.
    """

    # Class attributes are what most calls never set.
    timing: Mapping[str, float] = MappingProxyType({})
    deadline: float | None = None
    events: Events | None = None
    _timeout: float | None = None
    _listener: OnEvent | None = None
    _reply: Incoming | None = None

    def __init__(
        self,
        table: CallTable,
        request_id: int,
        command: str,
        timeout: float | None,
        has_events: bool,
    ) -> None:
        super().__init__()
        self.id = request_id
        self.command = command
        self._table = table
        if timeout is not None:
            self._timeout = timeout
            self.deadline = monotonic() + timeout
        if has_events:
            self.events = Events(self._hold, self._table.lock)

    def cancel(self) -> bool:
        """End the call, in the worker too; whether it is cancelled now. Its result is not
        available then: `result` raises Cancelled."""
        self.check_process()
        if self._table.claim(self):
            super().cancel()
            self.set_running_or_notify_cancel()
            self._end_events()
            self._table.post("cancel", {"id": self.id})
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Return the call's result, waited for `timeout` seconds.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when
        the call's own time is over; TimeoutError when `timeout` is; Cancelled after `cancel`.
        """
        return self._outcome(super().result, timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise, None for a call that succeeded; raises as `result`
        for a call that is not over, or cancelled."""
        error: BaseException | None = self._outcome(super().exception, timeout)
        return error

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Call cannot be pickled: it belongs to a Client in this process")

    @property
    def is_usable_here(self) -> bool:
        """Whether this is the process that started the worker, no fork of it, and not ending."""
        return self._table.is_usable_here

    def check_process(self) -> None:
        """Raise RuntimeError in another process than that of the client."""
        self._table.check_process()

    def listen(self, on_event: OnEvent) -> None:
        """Have on_event(event, data) called for each event, one after the other, on one thread.
        Raises RuntimeError if there can be no more threads."""
        self._listener = on_event
        self._table.threads.run(self._listen)

    def happen(self, event: str, data: Any) -> None:
        """Take in one of the call's events."""
        if self.events is not None:
            self.events.put(event, data)

    def settle(self, reply: Incoming) -> None:
        """Take in the call's reply."""
        if self._listener is not None:
            self._reply = reply
            self._end_events()  # the listener concludes the call, once it has heard all
        elif self._table.open.pop(self.id, None) is not None:  # as `claim`, on the hot path
            self._conclude(reply)

    def fail(self, error: BaseException) -> bool:
        """End the call with `error`; whether it was open."""
        if not self._table.claim(self):
            return False
        self.set_exception(error)
        self._end_events()
        return True

    def end_late(self) -> None:
        """End a call whose time is over, in the worker too."""
        text = f"no reply to {self.command} within {self._timeout} s"
        if self.fail(errors.DeadlineExceeded(text, timeout=self._timeout)):
            self._table.post("cancel", {"id": self.id})

    def _conclude(self, reply: Incoming) -> None:
        if reply.timing:
            self.timing = reply.timing
        if reply.success:
            self.set_result(reply.result)
        else:
            self.set_exception(errors.from_reply(reply.code, reply.error, reply.category, reply.details))
        if self.events is not None:
            self.events.end()

    def take_event(self) -> tuple[str, Any] | None:
        """Wait for the next event; None behind the last one. A call whose time is over ends."""
        self.check_process()
        assert self.events is not None
        try:
            return self.events.take(None if self.deadline is None else self.deadline + SLACK)
        except TimeoutError:
            self.end_late()
            return None

    def _listen(self) -> None:
        assert self._listener is not None
        try:
            while (event := self.take_event()) is not None:
                if self.done():
                    return
                self._listener(*event)
        except BaseException as error:
            if self.fail(error):
                self._table.post("cancel", {"id": self.id})
            return
        if self._reply is not None and self._table.claim(self):
            self._conclude(self._reply)

    def _end_events(self) -> None:
        if self.events is not None:
            self.events.end()

    def _hold(self, command: str) -> None:
        self._table.post(command, {"id": self.id})

    def _invoke_callbacks(self) -> None:
        # Future calls this once, on the thread that ends the call; that may be the reader thread.
        if self._done_callbacks:  # type: ignore[attr-defined]
            try:
                self._table.threads.run(super()._invoke_callbacks)  # type: ignore[misc]
            except RuntimeError:
                logging.getLogger("bridge").exception("the callbacks of %s do not run", self)

    def _outcome(self, get: Callable[[float | None], Any], timeout: float | None) -> Any:
        """Wait with `get`, at most `timeout` seconds and until the call's own time is over."""
        if self._table.pid != process.current_pid:
            self.check_process()
        left = None if timeout is None else seconds_of(timeout, least=-inf)
        is_last = False
        if self.deadline is not None:
            own = self.deadline + SLACK - monotonic()
            if left is None or own < left:
                left, is_last = own, True
        try:
            return get(left)
        except concurrent.futures.CancelledError:
            if not self.cancelled():
                raise  # what a listener raised
            raise CallCancelled("the caller cancelled the call") from None
        except TimeoutError:
            if is_last:
                self.end_late()
            elif not self.done():
                raise
            return get(None)


class Stream:
    """The events of a call as they come: iterate over (event, data), then ask for the result.

    The worker is held back while more than `Events.LIMIT` events wait to be taken. As a context
    manager it closes itself. A loop that ends early, by `break` or by an exception, closes it, too.
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
            self._close()  # does nothing behind the last event

    def result(self, timeout: float | None = None) -> Any:
        """Return the call's result, waited for `timeout` seconds. Raises as `Call.result`.

        The worker is not held back any more: events that nobody takes are kept.
        """
        self._call.check_process()
        self._events.lift_limit()
        return self._call.result(timeout)

    def cancel(self) -> bool:
        """End the call; the events that came are still there. Whether the call is cancelled."""
        return self._call.cancel()

    def close(self) -> None:
        """End the call, if it is not over, and drop the events that nobody has taken."""
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
        if self._call.is_usable_here:  # else there is nothing to close
            self._events.clear()
            if not self._call.done():
                self._call.cancel()
