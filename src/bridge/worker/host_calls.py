"""Calls in the other direction: the worker asks, the host answers."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from bridge import errors
from bridge._dispatch import Context
from bridge.wire.messages import ReceivedReply
from bridge.worker.threads import Threads


class HostCalls:
    """offers: what the host said in `hello` that it answers; nothing else is asked of it. threads:
    those of the calls that ask; while they wait, others run in their place."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self.offers: frozenset[str] = frozenset()
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Waiting] = {}

    def call(self, context: Context, command: str, args: dict[str, Any]) -> Any:
        """Ask the host and wait for its answer, at most until the call's own deadline.

        Raises NotAllowed where the host offered no tools, Overloaded where too many calls wait for
        the host, the error that it answered with, and CallEnded when the call is over first.
        """
        if "tools" not in self.offers:
            raise errors.NotAllowed("the host has not offered to be called: hello with offers.tools")
        request_id, waiting = f"w{next(self._numbers)}", Waiting()
        self._waiting[request_id] = waiting
        context.waiting = waiting
        try:
            context.check()
            self._send(context, request_id, command, args)
            with self._threads.waiting_for_host(context.job):
                waiting.event.wait(context.remaining)
            context.check()
            return waiting.result(command)
        finally:
            context.waiting = None
            self._waiting.pop(request_id, None)

    def is_asked(self, request_id: Any) -> bool:
        """Return whether an answer to that is waited for."""
        return request_id in self._waiting

    def deliver(self, reply: ReceivedReply) -> None:
        """Hand a reply to the call that waits for it; drop one that no call waits for."""
        waiting = self._waiting.get(reply.id)  # type: ignore[arg-type]  # others are not found
        if waiting is not None:
            waiting.answer = reply
            waiting.event.set()

    def _send(self, context: Context, request_id: str, command: str, args: dict[str, Any]) -> None:
        request = {"id": request_id, "command": command, "args": args, "call_id": context.id}
        context.send(context.encoded_call(command, request))


class Waiting:
    """One open question to the host."""

    __slots__ = ("answer", "event")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.answer: ReceivedReply | None = None

    def result(self, command: str) -> Any:
        """Return what the host answered. Raises what it failed with."""
        answer = self.answer
        if answer is None:
            raise errors.DeadlineExceeded(f"the host did not answer {command} in time")
        if answer.success:
            return answer.result
        raise errors.from_reply(answer.code, answer.error, answer.category, answer.details)
