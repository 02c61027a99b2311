"""The slots of a pool: each is one worker, from its start to its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from random import uniform
from time import monotonic
from typing import Any

from bridge.errors import BridgeError
from bridge.host.client import Client
from bridge.host.condition import Condition
from bridge.host.open_calls import OpenCall
from bridge.host.threaded import ThreadedConnection

# The states that may follow each state. A slot is made in the state "starting" or "ejected".
TRANSITIONS = {
    "starting": ("ready", "gone"),  # its worker starts and gets the state that all workers share
    "ready": ("draining", "gone"),  # it gets calls
    "draining": ("gone",),  # it only gets calls of its sessions
    "ejected": ("starting", "gone"),  # several workers of this number have failed: it waits before the next one
    "gone": (),
}

OnTransition = Callable[[dict[str, Any]], object]


class History:
    """What the earlier workers of a slot's number have done.

    faults: how many of them ended by a fault, in a row, without having served a call. ejections: how often that was too
    many.
    """

    def __init__(self) -> None:
        self.faults = 0
        self.ejections = 0


class Slot:
    """One worker of a pool. The slot that replaces it has the same number and history.

    session_id: the only session of the worker; None if it serves any. served: calls that it has answered, which is not
    exact, because threads count without a lock. capacity: calls that it accepts at a time. calls: the open ones.
    error: why its worker did not start. replaces: the slot that is drained when this one is ready. since: when it came
    into its state, and idle_since: when it was last seen with a call, both in seconds of time.monotonic(). variation: a
    factor of 0.9 to 1.1 for the limits of its life, so that slots do not reach them at the same time. ping, missed,
    progress: the latest health check, how many in a row had no answer, and what the worker had done by then.
    """

    __slots__ = (
        *("calls", "capacity", "client", "connection", "error", "history", "idle_since", "is_ending"),
        *("missed", "number", "ping", "progress", "replaces", "served", "session_id", "since", "state", "variation"),
    )

    connection: ThreadedConnection  # from the start of the worker on

    def __init__(self, number: int, history: History, state: str = "starting", session_id: str | None = None) -> None:
        self.number = number
        self.history = history
        self.state = state
        self.session_id = session_id
        self.client: Client | None = None
        self.calls: dict[int, Any] = {}
        self.capacity = 0
        self.served = 0
        self.since = self.idle_since = monotonic()
        self.variation = uniform(0.9, 1.1)
        self.error: BridgeError | None = None
        self.replaces: Slot | None = None
        self.ping: OpenCall | None = None
        self.missed = 0
        self.is_ending = False
        self.progress: object = None

    def attach(self, client: Client) -> None:
        """Give the slot its worker. Raises the errors of `Client.call` if the worker does not tell its limits."""
        self.client = client
        self.connection = client._connection
        self.calls = self.connection.inbox.calls
        limits = client.call("get_stats", {"include": ["worker"]})["worker"]
        self.capacity = limits["threads"] + limits["queue"]

    @property
    def pid(self) -> int | None:
        """Return the process id of the worker, or None before it has started."""
        return self.client.pid if self.client is not None else None

    @property
    def is_usable(self) -> bool:
        """Return whether the slot takes calls and its worker has not ended."""
        return self.state in ("ready", "draining") and self.connection.end_reason is None

    def open(
        self, command: str, timeout: float | None, has_events: bool = False, caller_waits: bool = True
    ) -> OpenCall:
        """Return a new call, which has not been sent. Raises RuntimeError in a fork of the host."""
        assert self.client is not None
        return self.client._open(command, timeout, has_events=has_events, caller_waits=caller_waits)

    def ask(self, command: str, args: Any, timeout: float | None) -> Any:
        """Call the worker, and return the result. Raises the errors of `Client.call`."""
        assert self.client is not None
        return self.client.call(command, args, timeout=timeout)

    def calls_of_users(self) -> int:
        """Return how many calls are open, without the ping."""
        ping = self.ping
        return len(self.calls) - (ping is not None and not ping.has_ended)

    def send_ping(self) -> None:
        """Ask the worker whether it answers, without waiting."""
        self.ping = ping = self.open("ping", None, caller_waits=False)
        with contextlib.suppress(BridgeError):  # its end will be noticed
            self.connection.request(ping, None, None, None)

    def progress_made(self) -> object:
        """Return a value that has changed if the worker has answered a call, or has read some of a request."""
        pending = self.connection.transport.first_pending()
        return self.served, id(pending), pending.sent if pending is not None else 0

    def __repr__(self) -> str:
        return f"<Slot {self.number} pid={self.pid}: {self.state}>"


class Slots:
    """All slots of a pool, and the tuple of those that take any call, which callers read without a lock.

    changed: a condition that is notified at each transition. report: gets an event for each transition.
    """

    def __init__(self, report: OnTransition) -> None:
        self.ready: tuple[Slot, ...] = ()
        self.all: list[Slot] = []
        self.changed = Condition()
        self._report = report

    def add(self, slot: Slot) -> None:
        """Add a slot in its first state."""
        with self.changed:
            self.all.append(slot)
            self.changed.notify_all()
        self._report(event_of(slot, None, None))

    def move(self, slot: Slot, state: str, reason: str | None = None) -> bool:
        """Move a slot to another state, and return whether it was possible. A slot that is gone is removed."""
        with self.changed:
            before = slot.state
            if state not in TRANSITIONS[before]:
                return False
            slot.state = state
            slot.since = slot.idle_since = monotonic()
            if state == "gone":
                self.all.remove(slot)
            self.ready = tuple(each for each in self.all if each.state == "ready" and each.session_id is None)
            self.changed.notify_all()
        self._report(event_of(slot, before, reason))
        return True

    def open_calls(self) -> int:
        """Return how many calls of users are open."""
        with self.changed:
            return sum(slot.calls_of_users() for slot in self.all)

    def count(self, *states: str) -> int:
        """Return the number of slots for any session that are in one of the states."""
        with self.changed:
            return sum(slot.state in states and slot.session_id is None for slot in self.all)


def event_of(slot: Slot, before: str | None, reason: str | None) -> dict[str, Any]:
    """Return the event of a transition."""
    event = {"event": "slot", "slot": slot.number, "from": before, "to": slot.state, "pid": slot.pid}
    if slot.session_id is not None:
        event["session_id"] = slot.session_id
    if reason is not None:
        event["reason"] = reason
    return event
