"""Calls from the worker to the host."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bridge import errors
from bridge._framing import Frame
from bridge.wire.codec import Format
from bridge.wire.messages import Id, ReceivedEvent, ReceivedReply
from bridge.wire.tensors import substitute


class Question:
    """Represents a call of the host that waits for its answer.

    id: of the request that the host gets. limit: how many bytes of events the host may send before the answer; 0: its
    events are ignored. arrived: set when an event or the answer has arrived.
    """

    __slots__ = ("_answer", "_bytes", "_events", "arrived", "id", "limit")

    def __init__(self, id: str, limit: int = 0) -> None:
        self.id = id
        self.limit = limit
        self.arrived = threading.Event()
        self._answer: ReceivedReply | None = None
        self._events: deque[tuple[str, Any]] = deque()
        self._bytes = 0

    def answer(self, answer: ReceivedReply) -> None:
        """Pass the host's answer to the handler that waits for it. Later ones, and later events, are ignored."""
        if self._answer is None:
            self._answer = answer
            self.arrived.set()

    def add_event(self, event: str, data: Any, size: int) -> None:
        """Pass an event to the handler. size: of its message, in bytes. Too many bytes end the call with an error."""
        if not self.limit or self._answer is not None:
            return
        self._bytes += size
        if self._bytes > self.limit:
            error = errors.ReplyTooLarge(f"the events of a host call have more than {self.limit} bytes (--max-frame)")
            self.answer(unreadable(self.id, error))
            return
        self._events.append((event, data))
        self.arrived.set()

    def events(self, wait: Callable[[threading.Event], None]) -> Iterator[tuple[str, Any]]:
        """Yield the events before the answer as (event, data). wait: called with `arrived`, to wait for it."""
        while True:
            self.arrived.clear()
            is_answered = self._answer is not None  # no event follows
            while self._events:
                yield self._events.popleft()
            if is_answered:
                return
            wait(self.arrived)

    def result(self) -> Any:
        """Return the result of the host, which must have answered. Raise the error that it answered with.

        HandlerError if the error has no known code: it is no fault of the worker.
        """
        answer = self._answer
        assert answer is not None
        if answer.success:
            return answer.result
        is_known = answer.code in errors.CODES and answer.code != errors.Internal.code
        code = answer.code if is_known else errors.HandlerError.code
        raise errors.from_reply(code, answer.error, answer.category, answer.details)


class HostCalls:
    """Holds the open calls to the host, by id.

    offers: what the host has offered in `hello`. max_events: bytes of events before the answer to a call.
    """

    def __init__(self, max_events: int) -> None:
        self._max_events = max_events
        self.offers: frozenset[str] = frozenset()
        self._numbers = itertools.count(1)
        self._open: dict[Any, Question] = {}

    @contextmanager
    def ask(self, *, streamed: bool = False) -> Iterator[Question]:
        """Provide a question whose answer is accepted until the `with` statement ends.

        streamed: whether events before the answer are wanted. Raises NotAllowed if the host has not offered to be
        called.
        """
        self.check_offer()
        question = Question(f"w{next(self._numbers)}", self._max_events if streamed else 0)
        self._open[question.id] = question
        try:
            yield question
        finally:
            del self._open[question.id]

    def check_offer(self) -> None:
        """Raise NotAllowed if the host has not offered to be called."""
        if "tools" not in self.offers:
            raise errors.NotAllowed("the host has not offered to be called: hello with offers.tools")

    def is_asked(self, request_id: Any) -> bool:
        """Return whether a question of that id is open."""
        return request_id in self._open

    def deliver(self, reply: ReceivedReply) -> None:
        """Pass a reply to the question of its id; ignore it if there is none."""
        question = self._open.get(reply.id)
        if question is not None:
            question.answer(reply)

    def deliver_event(self, format: Format, frame: Any) -> bool:
        """Pass an event of the host to the question of its id. Return whether the message is one."""
        message: ReceivedEvent | None = format.decode_or_none(frame, ReceivedEvent)
        if message is None:
            return False
        question = self._open.get(message.id)
        if question is not None:
            question.add_event(message.event, message.data, len(frame))
        return True


def decoded_reply(format: Format, frame: Any, buffers: tuple[Frame, ...] | None) -> ReceivedReply | None:
    """Decode the host's reply to a call. Return None if the message is not a reply."""
    reply: ReceivedReply | None = format.decode_or_none(frame, ReceivedReply)
    if reply is None or reply.success is None:
        return None
    if buffers is not None:
        try:
            reply.result = substitute(reply.result, buffers)
        except Exception as error:
            return unreadable(reply.id, error)
    return reply


def unreadable(request_id: Id | None, error: Exception) -> ReceivedReply:
    """Return the failure of the call whose reply from the host cannot be read."""
    if isinstance(error, MemoryError):
        error = errors.Overloaded.without_memory("to decode it")
    text = f"the reply of the host cannot be read: {errors.text_of(error)}"
    code = error.code if isinstance(error, errors.BridgeError) else errors.InvalidFrame.code
    return ReceivedReply(request_id, False, error=text, code=code)
