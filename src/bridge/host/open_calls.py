"""The open calls of a connection: requests whose replies may still arrive, and how each of them ends."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
from typing import Any, Protocol

from bridge import errors
from bridge._framing import Frame
from bridge.host._inbox import MOST_EVENTS, Exchange, Inbox
from bridge.host.transport import Transport
from bridge.wire.messages import Incoming

SLACK = 0.25  # seconds to wait after a deadline for the worker's own reply to it


class CallCancelled(errors.Cancelled, concurrent.futures.CancelledError):
    """Raised for a call that its caller has cancelled."""


class Channel(Protocol):
    """What an open call needs of its connection.

    post: sends a request without waiting, and ignores its reply. decode: returns the message in a frame, and raises
    InvalidFrame. lock: the reentrant lock that `post` takes; code that held a different one while posting could
    deadlock with a destructor that posts.
    """

    inbox: Inbox
    ids: itertools.count[int]
    transport: Transport
    lock: threading.RLock

    def post(self, command: str, args: dict[str, Any]) -> None: ...
    def decode(self, frame: Frame) -> Incoming: ...


class OpenCall(Exchange):
    """A call from its request to its end: a result, an error, its deadline, or cancelled.

    on_end: called in the event loop after the end of a call that no caller waits for. timing: where the worker
    spent the time, in µs, if the request asked for that. outbox: the frame of the request, if it had to wait to be
    sent.
    """

    __slots__ = ()

    channel: Channel

    @property
    def last_moment(self) -> float | None:
        """Return when to stop waiting for the worker, in seconds of time.monotonic()."""
        return None if self.deadline is None else self.deadline + SLACK

    def result(self) -> Any:
        """Wait for the end of the call, and return its result. Raises the error that it ended with.

        To be called once: the reply is dropped.
        """
        if not self.wait(self.last_moment):
            self.expire()
        return self.outcome()

    def outcome(self) -> Any:
        """Return the result of a call that has ended. Raises the error that it ended with. To be called once."""
        frame = self.take_reply()
        if frame is None:
            assert self.error is not None
            raise self.error
        try:
            reply = self.channel.decode(frame)
        except errors.BridgeError as error:
            raise undecodable(error) from error
        if reply.timing:
            self.timing = reply.timing
        if reply.success:
            return reply.result
        raise errors.from_reply(reply.code, reply.error, reply.category, reply.details)

    def fail(self, error: BaseException) -> bool:
        """End the call with `error`, and return whether it was open."""
        return self.channel.inbox.close(self, error)

    def cancel(self, error: BaseException | None = None) -> bool:
        """End the call with `error` (default: CallCancelled), in the worker too, and return whether it was open.

        A request that has not been started is not sent.
        """
        reaches_worker = self.outbox is None or not self.channel.transport.withdraw(self.outbox)
        was_open = self.fail(error or CallCancelled("the caller cancelled the call"))
        if was_open and reaches_worker:
            self.channel.post("cancel", {"id": self.id})
        return was_open

    def expire(self) -> None:
        """End the call with DeadlineExceeded, in the worker too."""
        text = f"no reply to {self.command} within {self.timeout} s"
        self.cancel(errors.DeadlineExceeded(text, timeout=self.timeout))

    def conclude(self) -> None:
        """Do what follows the end of a call that no caller waits for."""
        if self.on_end is not None:
            self.on_end()

    def next_event(self) -> tuple[str, Any] | None:
        """Wait for the next event and remove it. Return None after the last one, or when the call's timeout is over."""
        while True:
            has_ended = self.has_ended  # before looking for an event: none is added after the end
            if self.events:
                event = self.take_event()
                if event is not None:
                    return event
            elif has_ended:
                return None
            elif not self.wait(self.last_moment, for_event=True):
                self.expire()
                return None

    def take_event(self) -> tuple[str, Any] | None:
        """Remove the first event. Return None if another thread has removed it, or it is unreadable: then cancel."""
        assert self.events is not None
        try:
            frame = self.events.popleft()
        except IndexError:
            return None
        if self.is_paused and len(self.events) <= MOST_EVENTS // 2:
            self._resume()
        try:
            message = self.channel.decode(frame)
        except errors.BridgeError as error:
            self.cancel(undecodable(error))
            return None
        return message.event or "", message.data

    def drop_events(self) -> None:
        """Drop the events that wait."""
        assert self.events is not None
        self.events.clear()

    def pause(self) -> None:
        """Pause the worker's events, unless they have been consumed meanwhile."""
        with self.channel.lock:
            if self.is_paused:
                self.channel.post("pause", {"id": self.id})

    def lift_limit(self) -> None:
        """Let any number of events wait from now on."""
        self.is_unlimited = True
        if self.is_paused:
            self._resume()

    def _resume(self) -> None:
        with self.channel.lock:
            self.is_paused = False
            self.channel.post("resume", {"id": self.id})


def undecodable(error: errors.BridgeError) -> errors.BridgeError:
    """Return the error of a call whose reply or event raised `error` when it was decoded."""
    if isinstance(error, errors.InvalidFrame):
        return errors.InvalidFrame(f"the reply does not decode: {error}")
    return error
