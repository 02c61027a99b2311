"""Calls from the worker to the host."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bridge import errors
from bridge._framing import Frame
from bridge.wire.codec import Format
from bridge.wire.messages import Id, ReceivedReply
from bridge.wire.tensors import substitute


class Question:
    """Represents a call of the host that waits for its answer.

    id: of the request that the host gets. answered: set when the answer has arrived.
    """

    __slots__ = ("_answer", "answered", "id")

    def __init__(self, id: str) -> None:
        self.id = id
        self.answered = threading.Event()
        self._answer: ReceivedReply | None = None

    def answer(self, answer: ReceivedReply) -> None:
        """Pass the host's answer to the handler that waits for it."""
        self._answer = answer
        self.answered.set()

    def result(self) -> Any:
        """Return the result of the host, which must have answered. Raise the error that it answered with."""
        answer = self._answer
        assert answer is not None
        if answer.success:
            return answer.result
        raise errors.from_reply(answer.code, answer.error, answer.category, answer.details)


class HostCalls:
    """Holds the open calls to the host, by id.

    offers: what the host has offered in `hello`.
    """

    def __init__(self) -> None:
        self.offers: frozenset[str] = frozenset()
        self._numbers = itertools.count(1)
        self._open: dict[Any, Question] = {}

    @contextmanager
    def ask(self) -> Iterator[Question]:
        """Provide a question whose answer is accepted until the `with` statement ends.

        Raises NotAllowed if the host has not offered to be called.
        """
        self.check_offer()
        question = Question(f"w{next(self._numbers)}")
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
