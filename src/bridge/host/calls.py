"""A call as its caller sees it: a future of its result, and the stream of its events."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.messages import Incoming

if TYPE_CHECKING:
    from bridge.host.client import Client

OnEvent = Callable[[str, Any], None]


class Call(concurrent.futures.Future[Any]):
    """One call: a future of its result, whose exceptions are those of bridge.errors."""

    def __init__(self, client: Client, request_id: int, on_event: OnEvent | None) -> None:
        super().__init__()
        self.id = request_id
        self.timing: dict[str, float] = {}
        self._client = client
        self._on_event = on_event

    def cancel(self) -> bool:
        """Ask the worker to end the call, which then fails with Cancelled; whether it was open."""
        if self.done():
            return False
        with contextlib.suppress(errors.BridgeError):  # gone with its worker
            self._client.cast("cancel", {"id": self.id})
        return True

    def settle(self, reply: Incoming) -> None:
        """The call's one reply is here."""
        self.timing = reply.timing
        if reply.success:
            self.set_result(reply.result)
        else:
            self.set_exception(
                errors.from_reply(reply.code, reply.error, reply.category, reply.details)
            )

    def happen(self, event: str, data: Any) -> None:
        """One of the call's events is here."""
        if self._on_event is not None:
            self._on_event(event, data)


class Stream:
    """The events of a call as they come: iterate over (event, data), then ask for the result.

    The worker is held back while more than `LIMIT` events wait to be taken.
    """

    LIMIT = 256

    def __init__(self, start: Callable[[OnEvent], Call], client: Client) -> None:
        self._events: SimpleQueue[tuple[str, Any] | None] = SimpleQueue()
        self._client = client
        self._paused = False
        self._call = start(self._put)
        self._call.add_done_callback(lambda _: self._events.put(None))

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        while (event := self._events.get()) is not None:
            if self._paused and self._events.qsize() < self.LIMIT // 2:
                self._paused = False
                self._client.cast("resume", {"id": self._call.id})
            yield event

    def result(self, timeout: float | None = None) -> Any:
        """The call's result, waited for `timeout` seconds. Raises as `Client.call`."""
        return self._call.result(timeout)

    def cancel(self) -> bool:
        """End the call; the events that came are still there."""
        return self._call.cancel()

    def _put(self, event: str, data: Any) -> None:
        self._events.put((event, data))
        if not self._paused and self._events.qsize() > self.LIMIT:
            self._paused = True
            self._client.cast("pause", {"id": self._call.id})
