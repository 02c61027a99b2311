"""What a pool's user holds of an open call: a future of its result, or its events."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import inf
from queue import Empty
from threading import RLock
from time import monotonic
from types import TracebackType
from typing import Any, NoReturn

from bridge.errors import BridgeError
from bridge.host.calls import NO_TIMING, OnEvent
from bridge.host.condition import Condition
from bridge.host.open_calls import CallCancelled, OpenCall
from bridge.host.timeouts import seconds_of
from bridge.pool.jobs import Jobs
from bridge.pool.requests import Request
from bridge.pool.runner import Runner


class PoolCall(concurrent.futures.Future[Any]):
    """A future of the result of a pool's call. Its exceptions are those of bridge.errors.

    Callbacks run on a separate thread.
    """

    def __init__(self, request: Request, runner: Runner, jobs: Jobs, on_event: OnEvent | None) -> None:
        super().__init__()
        self._condition = Condition()  # a thread that all calls need waits for it, too
        self._request = request
        self._runner = runner
        self._jobs = jobs
        self._on_event = on_event
        self._has_delivered = False
        self._evaluated: OpenCall | None = None
        self._lock = RLock()

    @property
    def command(self) -> str:
        """Return the name of the command."""
        return self._request.command

    @property
    def timing(self) -> Mapping[str, float]:
        """Return where the worker spent the time, in µs; empty before the end, or if the call did not ask for it."""
        call = self._request.call
        return (call.timing if call is not None and self.done() else None) or NO_TIMING

    def start(self) -> None:
        """Send the request. Raises the errors of `Pool.call` if that is not possible."""
        if self._request.is_shared:
            try:  # waits, because the next call of this thread comes after this one in all workers
                self._jobs.result_of(self._share, self._request.left())
            except Empty:
                raise self._request.expired() from None
        elif self._on_event is None:
            self._runner.send(self._request, self._ended)
        else:
            call = self._runner.send(self._request)
            try:
                self._jobs.run(partial(self._listen, call))
            except BaseException:
                call.cancel()
                raise

    def cancel(self) -> bool:
        """Cancel the call, in the worker too, and return whether it is cancelled now.

        `result` raises Cancelled from then on.
        """
        self._request.check_own()
        with self._lock:
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()
            call = self._request.call
        if call is not None:
            call.cancel()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds, and return the call's result.

        Raises the class of bridge.errors that belongs to the reply's code; DeadlineExceeded when the call's own timeout
        is over; TimeoutError when `timeout` is; Cancelled after `cancel`.
        """
        self._request.check_own()
        try:
            return super().result(_seconds(timeout))
        except concurrent.futures.CancelledError as error:
            raise _cancelled(error) from None

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait at most `timeout` seconds, and return the call's exception, or None if it succeeded.

        Raises TimeoutError for a call that has not ended, and Cancelled for a cancelled one.
        """
        self._request.check_own()
        try:
            return super().exception(_seconds(timeout))
        except concurrent.futures.CancelledError as error:
            raise _cancelled(error) from None

    def conclude(self, outcome: Callable[[], Any]) -> None:
        """End the future with what `outcome` returns or raises, unless it has ended."""
        try:
            result, error = outcome(), None
        except BaseException as raised:
            result, error = None, raised
        with self._lock:
            if self.done():
                return
            if error is None:
                self.set_result(result)
            else:
                self.set_exception(error)

    def _share(self) -> None:
        """Send the call to all workers, on a thread that no signal handler interrupts: workers must not differ."""
        broadcast = self._runner.broadcast(self._request)
        self._jobs.run(partial(self.conclude, partial(self._runner.finish, broadcast)))

    def _ended(self, call: OpenCall) -> None:
        """Note, in the event loop of the connection, that the call has ended."""
        self._jobs.run_short(partial(self._evaluate, call))

    def _evaluate(self, call: OpenCall) -> None:
        """Conclude the future with what a call has ended with, or make another one. Has no effect the second time."""
        with self._lock:
            if self._evaluated is call or self.done():
                return
            self._evaluated = call
        try:
            result = call.outcome()
        except BridgeError as error:
            delay = None if self._has_delivered else self._runner.delay(self._request, error)
            if delay is None:
                self.conclude(partial(_raise, error))
            else:
                self._jobs.run_later(delay, self._start_again)
        except BaseException as error:
            self.conclude(partial(_raise, error))
        else:
            self.conclude(partial(self._succeeded, result))

    def _succeeded(self, result: Any) -> Any:
        self._runner.succeeded(self._request, result)
        return result

    def _start_again(self) -> None:
        if self.done():
            return
        try:
            self.start()
        except BaseException as error:
            self.conclude(partial(_raise, error))
        if self.cancelled() and (call := self._request.call) is not None:
            call.cancel()

    def _listen(self, call: OpenCall) -> None:
        assert self._on_event is not None
        try:
            while (event := call.next_event()) is not None and call.error is None:
                self._has_delivered = True
                self._on_event(*event)
        except BaseException as error:  # of the listener; the call may have ended before
            call.cancel(error)
            self.conclude(partial(_raise, error))
        else:
            self._evaluate(call)

    def _invoke_callbacks(self) -> None:
        if self._done_callbacks:  # type: ignore[attr-defined]
            try:
                self._jobs.run(super()._invoke_callbacks)  # type: ignore[misc]
            except RuntimeError:
                logging.getLogger("bridge").exception("cannot run the callbacks of %s", self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PoolCall cannot be pickled: it belongs to a Pool in this process")

    def __repr__(self) -> str:
        state = "cancelled" if self.cancelled() else "finished" if self.done() else "pending"
        return f"<PoolCall {self.command}: {state}>"


class PoolStream:
    """The events of a pool's call as they arrive: iterate over (event, data), then ask for the result.

    The worker is paused while more than 256 events wait to be consumed. A loop that ends early, by `break` or by an
    exception, closes the stream; so does leaving it as a context manager. A call that fails before its first event was
    consumed may be made once more in another worker.
    """

    def __init__(self, request: Request, runner: Runner) -> None:
        self._request = request
        self._runner = runner
        self._has_delivered = False
        self._is_cancelled = False
        self._outcome: tuple[Any, BaseException | None] | None = None
        self._lock = RLock()
        self._call = runner.send(request)

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        try:
            while (event := self._next()) is not None:
                yield event
        finally:
            self._close()  # does nothing after the last event

    def result(self, timeout: float | None = None) -> Any:
        """Wait at most `timeout` seconds, and return the call's result. Raises the errors of `PoolCall.result`.

        The worker is not paused from then on: events that have not been consumed stay in memory.
        """
        self._request.check_own()
        seconds = _seconds(timeout)
        until = None if seconds is None else monotonic() + seconds
        while True:
            call = self._call
            call.lift_limit()
            last = call.last_moment
            is_own = last is not None and (until is None or last < until)
            if not call.wait(last if is_own else until):
                if not is_own:
                    raise TimeoutError
                call.expire()
            if not self._goes_on(call):
                break
        assert self._outcome is not None
        result, error = self._outcome
        if error is not None:
            raise error
        return result

    def cancel(self) -> bool:
        """Cancel the call, and return whether it is cancelled now. Events that have arrived stay available."""
        self._request.check_own()
        self._is_cancelled = True
        self._call.cancel()
        return isinstance(self._call.error, CallCancelled)

    def close(self) -> None:
        """Cancel the call if it has not ended, and drop events that have not been consumed."""
        self._request.check_own()
        self._close()

    def _next(self) -> tuple[str, Any] | None:
        self._request.check_own()
        while True:
            call = self._call
            event = call.next_event()
            if event is not None:
                self._has_delivered = True
                return event
            if not self._goes_on(call):
                return None

    def _goes_on(self, call: OpenCall) -> bool:
        """Decide about a call that has ended, and return whether there is another one in its place."""
        with self._lock:
            if self._call is not call:
                return True
            if self._outcome is not None:
                return False
            try:
                result = call.outcome()
                self._outcome = result, None
                self._runner.succeeded(self._request, result)
            except BridgeError as error:
                if not self._has_delivered and not self._is_cancelled:
                    try:
                        self._start_again(error)
                        return True
                    except BridgeError as final:
                        error = final
                self._outcome = None, error
            except BaseException as error:
                self._outcome = None, error
            return False

    def _start_again(self, error: BridgeError) -> None:
        self._runner.prepare_next(self._request, error)
        self._call = self._runner.send(self._request)
        if self._is_cancelled:  # meanwhile, by another thread
            self._call.cancel()

    def _close(self) -> None:
        slot, call = self._request.slot, self._request.call
        if slot is not None and call is not None and slot.connection.worker.is_usable:
            self._is_cancelled = True
            call.drop_events()
            call.cancel()

    def __enter__(self) -> PoolStream:
        self._request.check_own()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __del__(self) -> None:
        if hasattr(self, "_request"):
            self._close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a PoolStream cannot be pickled: it belongs to a Pool in this process")

    def __repr__(self) -> str:
        return f"<PoolStream {self._request.command}: {'ended' if self._call.has_ended else 'open'}>"


def _seconds(timeout: float | None) -> float | None:
    """Return how long to wait. As for other futures, a time that is over already is no mistake."""
    return None if timeout is None else seconds_of(timeout, least=-inf)


def _cancelled(error: BaseException) -> CallCancelled:
    return error if isinstance(error, CallCancelled) else CallCancelled("the caller cancelled the call")


def _raise(error: BaseException) -> NoReturn:
    raise error
