"""Whether and when a request is made once more after it has failed."""

from __future__ import annotations

import math
from collections.abc import Container

from bridge import errors
from bridge.pool.budget import RetryBudget
from bridge.pool.policy import decide
from bridge.pool.requests import Request
from bridge.pool.slots import OnTransition, Slots
from bridge.pool.supervisor import Supervisor


class Recovery:
    """Decides by the policy about requests that have failed.

    idempotent: the commands that may run twice.
    """

    def __init__(self, slots: Slots, idempotent: Container[str], supervisor: Supervisor, report: OnTransition) -> None:
        self.budget = RetryBudget()
        self._slots = slots
        self._idempotent = idempotent
        self._supervisor = supervisor
        self._report = report

    def delay(self, request: Request, error: errors.BridgeError) -> float | None:
        """Return the seconds after which to make a request again that has failed with `error`; None: it is final."""
        slot = request.slot
        if slot is None:  # no worker got it
            return None
        # A worker that has lost a session to another one has refused the call.
        started = request.was_started() and error.code != errors.SessionLost.code
        if isinstance(error, errors.WorkerCrashed):
            if slot.connection.end_reason is not None:
                self._supervisor.ended(slot)
            request.deaths += started
        if self._supervisor.closed:
            return None
        request.avoided.append(slot)
        try:
            left = request.left()
        except errors.DeadlineExceeded:
            return None
        if isinstance(error, errors.WorkerCrashed) and not started and request.attempts < MOST_UNSENT:
            return 0.0
        decision = decide(
            error,
            attempts=request.attempts,
            idempotent=request.command in self._idempotent,
            started=started,
            deaths=request.deaths,
            others=any(each not in request.avoided for each in self._slots.ready),
            remaining=math.inf if left is None else left,
        )
        if decision.repeat is None or not self.budget.take():
            return None
        self._report(
            {
                "event": "retry",
                "command": request.command,
                "slot": slot.number,
                "code": error.code,
                "delay": decision.delay,
            }
        )
        return decision.delay


MOST_UNSENT = 10  # attempts of a request that was never sent, because the worker had ended
