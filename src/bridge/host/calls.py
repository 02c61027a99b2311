"""What a synchronous caller holds of an open call: a future of its result, or its events."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Iterator, Mapping
from math import inf
from threading import RLock
from time import monotonic
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn

from bridge.host.condition import Condition
from bridge.host.open_calls import CallCancelled, OpenCall
from bridge.host.threads import Threads
from bridge.host.timeouts import seconds_of
from bridge.host.worker import Worker

NO_TIMING: Mapping[str, float] = MappingProxyType({})

OnEvent = Callable[[str, Any], None]


class Call(concurrent.futures.Future[Any]):
    """A future of a call's result. Its exceptions are those of bridge.errors.

    Callbacks run on a separate thread, never on one that the connection needs.
    """

    def __init__(self, call: OpenCall, worker: Worker, threads: Threads) -> None:
        super().__init__()
        self._condition = Condition()  # the background thread waits for it, too
        self._call = call
        self._worker = worker
        self._threads = threads
        self._on_event: OnEvent | None = None
        self._lock = RLock()
        self._outcome: tuple[Any, BaseException | None] | None = None
        if not call.caller_waits:
            call.on_end = self._conclude

    @property
    def id(self) -> int:
        """Return the id of the request."""
        return self._call.id

    @property
    def command(self) -> str:
        """Return the name of the command."""
        return self._call.command

    @property
    def timing(self) -> Mapping[str, float]:
        """Return where the worker spent the time, in µs; empty before the end, or if the call did not ask for it."""
        if self.done():
            self._decoded()
        return self._call.timing or NO_TIMING

    def cancel(self) -> bool:
        """Cancel the call, in the worker too, and return whether it is cancelled now.

        `result` raises Cancelled from then on.
        """
        self._worker.check_own()
        if self._call.cancel() or (self._on_event is None and self._call.has_ended):
            self._conclude()
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds, and return the call's result.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when
        the call's own timeout is over; TimeoutError when `timeout` is; Cancelled after `cancel`.
        """
        self._wait(timeout)
        result, error = self._decoded()
        if error is not None:
            raise error
        return result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait at most `timeout` seconds, and return the call's exception, or None if it succeeded.

        Raises TimeoutError for a call that has not ended, and Cancelled for a cancelled one.
        """
        self._wait(timeout)
        error = self._decoded()[1]
        if error is not None and self.cancelled():
            raise error
        return error

    def listen(self, on_event: OnEvent) -> None:
        """Call on_event(event, data) for each event, in order, on a separate thread.

        Raises RuntimeError if no thread can be started.
        """
        self._on_event = on_event
        self._threads.run(self._listen)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Call cannot be pickled: it belongs to a Client in this process")

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "finished" if self.done() else "pending"
        return f"<Call {self.id} {self.command}: {state}>"

    def _wait(self, timeout: float | None) -> None:
        """Wait for the end of the call, until `timeout` or the call's own timeout is over."""
        if not self._worker.is_own:
            self._worker.check_own()
        seconds = None if timeout is None else seconds_of(timeout, least=-inf)
        until = None if seconds is None else monotonic() + seconds
        last = self._call.last_moment
        is_own_timeout = last is not None and (until is None or last < until)
        if is_own_timeout:
            until = last
        if not self.done():
            self._wait_until(until)
        if self.done():
            return
        if not is_own_timeout:
            raise TimeoutError
        self._call.expire()
        self._conclude()

    def _wait_until(self, until: float | None) -> None:
        if self._on_event is not None:  # the listener's thread ends the call after the last event
            concurrent.futures.wait([self], None if until is None else until - monotonic())
            return
        try:
            self._call.wait(until)
        finally:
            if self._call.has_ended:
                self._conclude()

    def _conclude(self) -> None:
        """End the future, now that the call has ended."""
        with self._lock:
            if self.done():
                return
            if isinstance(self._call.error, CallCancelled):
                super().cancel()
                self.set_running_or_notify_cancel()
            else:
                self.set_result(None)  # what the call ended with is decoded when it is asked for
            self._call.on_end = None

    def _decoded(self) -> tuple[Any, BaseException | None]:
        """Return the result and the exception of a call that has ended."""
        with self._lock:
            if self._outcome is None:
                try:
                    self._outcome = self._call.outcome(), None
                except BaseException as error:
                    self._outcome = None, error
            return self._outcome

    def _listen(self) -> None:
        assert self._on_event is not None
        try:
            while (event := self._call.next_event()) is not None and self._call.error is None:
                self._on_event(*event)
        except BaseException as error:
            self._call.cancel(error)
        self._conclude()

    def _invoke_callbacks(self) -> None:
        # Future calls this once, on the thread that ends the call, which may be needed for reading.
        if self._done_callbacks:  # type: ignore[attr-defined]
            try:
                self._threads.run(super()._invoke_callbacks)  # type: ignore[misc]
            except RuntimeError:
                logging.getLogger("bridge").exception("cannot run the callbacks of %s", self)


class Stream:
    """The events of a call as they arrive: iterate over (event, data), then ask for the result.

    The worker is paused while more than 256 events wait to be consumed. A loop that ends early, by `break` or by an
    exception, closes the stream; so does leaving it as a context manager.
    """

    def __init__(self, call: OpenCall, worker: Worker, threads: Threads) -> None:
        self._call = call
        self._worker = worker
        self._future = Call(call, worker, threads)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        try:
            while (event := self._next()) is not None:
                yield event
        finally:
            self._close()  # does nothing after the last event

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds, and return the call's result. Raises the errors of `Call.result`.

        The worker is not paused from then on: events that have not been consumed stay in memory.
        """
        self._worker.check_own()
        self._call.lift_limit()
        return self._future.result(timeout)

    def cancel(self) -> bool:
        """Cancel the call, and return whether it is cancelled now. Events that have arrived stay available."""
        return self._future.cancel()

    def close(self) -> None:
        """Cancel the call if it has not ended, and drop events that have not been consumed."""
        self._worker.check_own()
        self._close()

    def __enter__(self) -> Stream:
        self._worker.check_own()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        if hasattr(self, "_future"):
            self._close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream cannot be pickled: it belongs to a Client in this process")

    def __repr__(self) -> str:
        state = "ended" if self._call.has_ended else "open"
        return f"<Stream {self._call.id} {self._call.command}: {state}>"

    def _next(self) -> tuple[str, Any] | None:
        self._worker.check_own()
        return self._call.next_event()

    def _close(self) -> None:
        if self._worker.is_usable:
            self._call.drop_events()
            self._call.cancel()
