"""The pool of a node, and the calls of the host in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from bridge.host.calls import OnEvent
from bridge.host.client import Client
from bridge.pool.calls import PoolCall
from bridge.pool.pool import Pool
from bridge.pool.slots import Slot
from bridge.ray.functions import HostFunctions
from bridge.wire.messages import ReceivedReply

IDS = itertools.count(1000)  # of calls, after those with which a client begins


class Received(ReceivedReply, gc=False):
    """Represents a message of the host: a request (it has `command`), a reply (`success`), or an event (`event`)."""

    command: str | None = None
    args: Any = None
    session_id: str | None = None
    timeout_ms: float | None = None
    stream: bool = False
    timing: bool = False
    traceparent: str | None = None
    event: str | None = None
    data: Any = None


class NodeCall(PoolCall):
    """Represents a call of the host. on_done(call): called at its end, on the thread that notes it."""

    on_done: Callable[[NodeCall], object]

    def start(self) -> None:
        """Send the request. Raises the errors of `Pool.submit`."""
        super().start()
        if self.cancelled() and (call := self._request.call) is not None:  # meanwhile, by another thread
            call.cancel()

    def is_made_as(self, call_id: Any) -> bool:
        """Return whether the call has this id in its worker."""
        call = self._request.call
        return call is not None and call.id == call_id

    def _invoke_callbacks(self) -> None:
        self.on_done(self)


class WorkerSlot(Slot):
    """A slot whose calls have ids that no other slot's have."""

    __slots__ = ()

    def attach(self, client: Client) -> None:
        """Give the slot its worker. Raises the errors of `Slot.attach`."""
        client._connection.ids = IDS
        super().attach(client)


class NodePool(Pool):
    """The pool of a node. ask: of the functions of the host, see `HostFunctions`."""

    def __init__(self, ask: Callable[..., Any], **options: Any) -> None:
        self._ask = ask
        super().__init__(**options)

    def _prepare(self, *args: Any) -> None:
        super()._prepare(*args)
        self._functions = HostFunctions(self._ask)

    def _begin(self, *args: Any) -> None:
        self._supervisor.slot_type = WorkerSlot
        super()._begin(*args)

    def call_of(
        self, message: Received, waited: float, on_event: OnEvent | None, on_done: Callable[[NodeCall], object]
    ) -> NodeCall:
        """Return the call of a request that has waited for some seconds, for `start`. Raises the errors of `submit`."""
        assert message.command is not None
        timeout = None if message.timeout_ms is None else max(0.0, message.timeout_ms / 1000 - waited)
        request = self._request(message.command, message.args, timeout, message.session_id, message.traceparent)
        request.has_events, request.timing = on_event is not None, message.timing
        call = NodeCall(request, self._runner, self._jobs, on_event)
        call.on_done = on_done
        return call

    def capacity(self) -> int:
        """Return how many calls all workers together accept at a time."""
        return self._supervisor.most * max((slot.capacity for slot in self._slots.ready), default=1)

    def is_shared(self, command: str, session_id: Any) -> bool:
        """Return whether a call has to be made in all workers."""
        return command in self._shared and session_id in (None, self._default_session)
