"""A connection whose callers wait in their threads."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from bridge._framing import Outbox
from bridge.host._inbox import CHECK
from bridge.host.background import Background
from bridge.host.calls import Call, OnEvent
from bridge.host.condition import Condition
from bridge.host.connection import Connection, Settings
from bridge.host.functions import is_stream, joined
from bridge.host.logs import LogForwarder
from bridge.host.open_calls import OpenCall
from bridge.host.threads import Threads
from bridge.host.worker import Worker
from bridge.wire.messages import Incoming

LOG_SECONDS = 1.0  # how long the end of a worker waits for slow logging handlers


class ThreadedConnection(Connection):
    """A connection to a worker, usable from any number of threads.

    threads: run listeners, callbacks, functions of the host and logging handlers. on_lost: called after the worker has
    ended, in the background thread; it must not wait.
    """

    def __init__(self, worker: Worker, settings: Settings) -> None:
        self._background = Background()
        self._next_check = inf
        self.threads = Threads("bridge-callbacks")
        self._logs = LogForwarder(worker, self.threads.run) if settings.forwards_logs else None
        log = self._logs.add if self._logs else None
        super().__init__(worker, settings, self._background, log)
        self._changed = Condition(self.lock)
        self._is_lost = threading.Event()
        self.on_lost: Callable[[], object] | None = None
        self.transport.watch()
        self._background.start(self.inbox, worker.output_fd)

    def start(
        self,
        call: OpenCall,
        args: Any,
        session_id: str | None,
        traceparent: str | None,
        timing: bool = False,
    ) -> None:
        """Send the request of a call, and wait until it has been sent.

        Raises NotEncodable and FrameTooLarge if the request cannot be encoded, DeadlineExceeded if the worker does not
        accept it in time, WorkerCrashed if the worker has ended.
        """
        self.request(call, args, session_id, traceparent, timing)
        if not call.caller_waits and (last := call.last_moment) is not None and last < self._next_check:
            self.inbox.add_job(CHECK, last)
        if call.outbox is not None:
            try:
                self._wait_until_sent(call.outbox, call.deadline)
            except TimeoutError:
                call.expire()
                if call.error is not None:
                    raise call.error from None
            except BaseException:
                call.cancel()
                raise

    def listen(self, future: Call, call: OpenCall, on_event: OnEvent) -> None:
        """Pass the events of a call to `on_event`. Raises RuntimeError, and cancels the call, if there is no thread."""
        try:
            future.listen(on_event)
        except BaseException:
            call.cancel()
            raise

    def answer(self, request: Incoming) -> None:
        """Answer a call of the worker on another thread. Raises RuntimeError if none can be started."""
        self.threads.run(lambda: self._answer(request))

    def progressed(self) -> None:
        """Wake the callers that wait until their frames have been sent."""
        self._changed.notify_all()

    def lost(self) -> None:
        """Wake those who wait for the end of the worker."""
        self._is_lost.set()
        if self.on_lost is not None:
            self.on_lost()

    def close(self, reason: str, timeout: float | None) -> int | None:
        """End the worker after the pending frames, killing it after `timeout` seconds, and return its exit status.

        Kill it at once if the interpreter is ending.
        """
        worker = self.worker
        if sys.is_finalizing():  # the other threads have stopped, perhaps while holding the lock
            worker.end_without_threads()
        else:
            self.transport.close(reason)
            if not self._is_lost.wait(timeout):
                worker.kill()
                self._is_lost.wait()
            if self._logs is not None:
                self._logs.flush(LOG_SECONDS)
        return worker.exit_status

    def _serve(self, kind: int, subject: Any) -> None:
        if kind == CHECK:
            self._expire_at(subject)
        else:
            super()._serve(kind, subject)

    def _expire_at(self, moment: float) -> None:
        """Check the deadlines at a moment, in seconds of time.monotonic(), unless that happens before it anyway."""
        if moment < self._next_check:
            self._next_check = moment
            self._background.call_later(max(0.0, moment - time.monotonic()), partial(self._expire_calls, moment))

    def _expire_calls(self, moment: float) -> None:
        if moment == self._next_check:  # otherwise another check at an earlier moment has replaced this one
            self._next_check = inf  # before checking: a call that is opened meanwhile asks for a check of its own
            self._expire_at(self.expire_calls())

    def _wait_until_sent(self, outbox: Outbox, deadline: float | None) -> None:
        """Wait until the pipe has accepted a frame, or accepts no more.

        Raises TimeoutError at `deadline`.
        """
        with self._changed:
            while outbox.sent < len(outbox) and not self.transport.is_input_closed:
                left = None if deadline is None else deadline - time.monotonic()
                if not self._changed.wait(left):
                    raise TimeoutError

    def _answer(self, request: Incoming) -> None:
        """Reply to a call of the worker, whatever the function raises."""
        try:
            function, given = self.functions.find(request)
            result = function.call(given)
            if function.kind == "model" and is_stream(result):
                result = joined(result, partial(self._announce, request))
            outbox = self.reply(request, result)
        except BaseException as error:
            outbox = self.failure(request, error)
        with contextlib.suppress(ConnectionError):  # the worker has ended
            self._post(outbox)

    def _announce(self, request: Incoming, text: str) -> None:
        """Send a piece of a model's reply to a worker that wants it. Raises ConnectionError if the worker has ended."""
        outbox = self.chunk(request, text)
        if outbox is not None:
            self._post(outbox)

    def _post(self, outbox: Outbox) -> None:
        """Send a frame, and wait until it has been sent. Raises ConnectionError if the worker has ended."""
        if not self.transport.write(outbox):
            self._wait_until_sent(outbox, None)
