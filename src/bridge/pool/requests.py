"""A call of a pool's user, which may take more than one attempt."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Protocol

from bridge import errors
from bridge.host.open_calls import OpenCall
from bridge.pool.slots import Slot


class Settled(Protocol):
    """Represents what has to know how a request has ended."""

    def settle(self, succeeded: bool | None) -> None: ...


@dataclass(slots=True, eq=False)
class Request:
    """What the user asked for, and what has been tried.

    session_id: as the caller gave it. session: whose worker has to get the request; None: any worker.
    is_shared: whether all workers have to get it.
    timeout: seconds, from the beginning of the first attempt to the end of the last one. deadline: when they are over,
    in seconds of time.monotonic(). slot, call: of the latest attempt. attempts: how many slots have got the call.
    deaths: how many workers died of a signal while they had it. started: whether the latest attempt reached a worker.
    avoided: slots that have failed, which do not get it again. permit: of the circuit breaker, see `Providers`.
    """

    command: str
    args: Any
    session_id: str | None
    session: str | None
    traceparent: str | None
    timeout: float | None
    deadline: float | None
    is_shared: bool = False
    has_events: bool = False
    timing: bool = False
    slot: Slot | None = None
    call: OpenCall | None = None
    attempts: int = 0
    deaths: int = 0
    started: bool = False
    avoided: list[Slot] = field(default_factory=list)
    permit: Settled | None = None
    host_pid: int = field(default_factory=os.getpid)

    def check_own(self) -> None:
        """Raise RuntimeError in a fork of the process that has made the request."""
        if os.getpid() != self.host_pid:
            raise RuntimeError(
                f"this call belongs to process {self.host_pid} and cannot be used in its fork {os.getpid()}"
            )

    def settle(self, succeeded: bool | None) -> None:
        """Note the end of the request. succeeded: None if it says nothing about the provider of the model."""
        if self.permit is not None:
            self.permit.settle(succeeded)

    def left(self) -> float | None:
        """Return the seconds until the deadline, or None. Raises DeadlineExceeded after it."""
        if self.deadline is None:
            return None
        left = self.deadline - monotonic()
        if left <= 0:
            raise self.expired()
        return left

    def expired(self) -> errors.DeadlineExceeded:
        """Return the error of a call whose time is over."""
        return errors.DeadlineExceeded(f"no reply to {self.command} within {self.timeout} s", timeout=self.timeout)

    def send(self, slot: Slot, on_end: Callable[[OpenCall], None] | None) -> OpenCall:
        """Send the request to a slot's worker, and return the call. Raises the errors of `Client.submit`.

        on_end(call): called at the end of the call, perhaps twice, and never if this method raises. None: the caller
        waits for the call.
        """
        left = self.timeout if self.attempts == 0 else self.left()
        self.slot, self.started, self.call = slot, False, None
        self.attempts += 1
        self.call = call = slot.open(self.command, left, self.has_events, caller_waits=on_end is None)
        slot.connection.start(call, self.args, self.session_id, self.traceparent, self.timing)
        self.started = True
        if on_end is not None:
            call.on_end = partial(on_end, call)
            if call.has_ended:
                on_end(call)
        return call

    def was_started(self) -> bool:
        """Return whether the worker of the latest attempt may have begun to run the call."""
        outbox = self.call.outbox if self.call is not None else None
        return self.started and (outbox is None or outbox.sent >= len(outbox))
