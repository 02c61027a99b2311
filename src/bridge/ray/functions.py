"""Functions of the host, as a node's workers call them: each call goes on to the host's process."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

from bridge import errors
from bridge.host.functions import KINDS, Functions
from bridge.wire.messages import Incoming

CLOSED = errors.WorkerCrashed("the host has ended")


class HostFunction:
    """Makes one call of a function of the host. ask(request): makes it, see `HostCalls`."""

    is_async = False

    def __init__(self, kind: str, name: str, request: Incoming, ask: Callable[[Incoming], Iterator[Any]]) -> None:
        self.kind, self.name = kind, name
        self._request = request
        self._ask = ask

    def call(self, given: dict[str, Any]) -> Any:
        """Return what the function returns, or for a model that is to stream its reply, an iterator of the pieces."""
        answers = self._ask(self._request)
        if self.kind == "model" and self._request.args.get("stream"):
            return answers
        *_, result = answers
        return result


class HostFunctions(Functions):
    """Finds all functions that the host may have, whatever their names: the host knows which it has."""

    def __init__(self, ask: Callable[[Incoming], Iterator[Any]]) -> None:
        super().__init__()
        self._ask = ask

    def find(self, request: Incoming) -> tuple[Any, dict[str, Any]]:
        """Return what makes the call of a worker's request in the host. Raises UnknownCommand."""
        kind = KINDS.get(request.command or "")
        if kind is None:
            raise errors.UnknownCommand(f"Unknown command: {request.command}")
        return HostFunction(kind, str(request.args.get("name", "")), request, self._ask), {}


class HostCalls:
    """Holds the calls of this node's workers to the host that have no reply yet.

    send(message, name): sends a message. host_id(id): returns the host's id of a call that a worker makes, so that the
    host can see when nobody needs its reply anymore.
    """

    def __init__(self, send: Callable[[dict[str, Any], str], None], host_id: Callable[[Any], Any]) -> None:
        self._send = send
        self._host_id = host_id
        self._ids = itertools.count(1)
        self._open: dict[int, SimpleQueue[Any]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def ask(self, request: Incoming) -> Iterator[Any]:
        """Make a call, and yield the pieces of the reply that arrive before it, and then the reply.

        Raises the error of the function, and WorkerCrashed if the connection to the host ends.
        """
        number = next(self._ids)
        answers: SimpleQueue[Any] = SimpleQueue()
        with self._lock:
            if self._is_closed:
                raise CLOSED
            self._open[number] = answers
        try:
            call_id = self._host_id(request.call_id)
            self._send({"id": number, "command": request.command, "args": request.args, "call_id": call_id}, "args")
        except BaseException:
            self._open.pop(number, None)
            raise
        return self._answers(number, answers)

    def _answers(self, number: int, answers: SimpleQueue[Any]) -> Iterator[Any]:
        try:
            while (message := answers.get()) is not None:
                if message.event is not None:
                    yield str(message.data.get("text", ""))
                elif message.success:
                    yield message.result
                    return
                else:
                    raise errors.from_reply(message.code, message.error, message.category, message.details)
            raise CLOSED
        finally:
            self._open.pop(number, None)

    def receive(self, message: Any) -> None:
        """Take a reply or an event of the host."""
        answers = self._open.get(message.id)
        if answers is not None:
            answers.put(message)

    def close(self) -> None:
        """Fail the open calls, and all later ones."""
        with self._lock:
            self._is_closed = True
            waiting = list(self._open.values())
        for answers in waiting:
            answers.put(None)
