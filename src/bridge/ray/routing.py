"""Which node gets a request, and whether it is made once more after it has failed."""

from __future__ import annotations

from functools import lru_cache

from bridge.errors import BridgeError
from bridge.pool.recovery import Recovery
from bridge.pool.requests import Request
from bridge.pool.routing import Router
from bridge.pool.sessions import Home, Sessions
from bridge.pool.slots import Slot, Slots
from bridge.pool.supervisor import Supervisor
from bridge.ray.nodes import node_of
from bridge.ray.ring import Ring


class NodeRouter(Router):
    """Finds nodes. A session without a home gets the node that the ring names; from then on it stays there."""

    def __init__(self, slots: Slots, sessions: Sessions, supervisor: Supervisor, is_strict: bool) -> None:
        super().__init__(slots, sessions, supervisor, is_strict, isolates=False, most_isolated=0)

    def _home(self, request: Request, session_id: str) -> Home:
        home = self._homes.get(session_id)
        return home or self._homes.setdefault(session_id, Home(self._owner(request, session_id)))

    def _owner(self, request: Request, session_id: str) -> Slot:
        """Return the node of a session, waiting for one that starts."""
        self.await_ready(request)
        ready = self._slots.ready
        others = [slot for slot in ready if slot not in request.avoided]
        slots = {node_of(slot).id: slot for slot in others or ready}
        return slots[_ring(frozenset(slots)).owner(session_id)]


@lru_cache(maxsize=8)
def _ring(nodes: frozenset[str]) -> Ring:
    return Ring(nodes)


class NodeRecovery(Recovery):
    """Decides about requests that have failed. A failure that a node reports is final: its pool has repeated the
    request already where that may help. What is left are nodes that are lost, or have no room."""

    def delay(self, request: Request, error: BridgeError) -> float | None:
        """Return the seconds after which to make a request again that has failed with `error`; None: it is final."""
        call = request.call
        if call is not None and call.error is None and error.details.get("started") is not False:
            request.settle(None)
            return None
        return super().delay(request, error)
