"""Whether and when a request is made once more after it has failed."""

from __future__ import annotations

import math
from collections.abc import Container
from time import monotonic

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
        delay, against_provider = self._decision(request, error)
        if delay is None:
            request.settle(False if against_provider else None)
        return delay

    def _decision(self, request: Request, error: errors.BridgeError) -> tuple[float | None, bool]:
        """Return what `delay` returns, and whether the failure counts against the provider of the model."""
        slot = request.slot
        if slot is None:  # no worker got it
            return None, False
        # A worker that has lost a session to another one has refused the call.
        started = request.was_started() and error.code != errors.SessionLost.code
        if isinstance(error, errors.WorkerCrashed):
            if slot.connection.end_reason is not None:
                self._supervisor.ended(slot)
            request.deaths += started
        if self._supervisor.closed:
            return None, False
        request.avoided.append(slot)
        left = math.inf if request.deadline is None else request.deadline - monotonic()
        if isinstance(error, errors.WorkerCrashed) and not started and request.attempts < MOST_UNSENT and left > 0:
            return 0.0, False
        decision = decide(
            error,
            attempts=request.attempts,
            idempotent=request.command in self._idempotent,
            started=started,
            deaths=request.deaths,
            others=any(each not in request.avoided for each in self._slots.ready),
            remaining=left,
        )
        if decision.repeat is None or not self.budget.take():
            return None, decision.against_breaker
        self._report(
            {
                "event": "retry",
                "command": request.command,
                "slot": slot.number,
                "code": error.code,
                "delay": decision.delay,
            }
        )
        return decision.delay, False


MOST_UNSENT = 10  # attempts of a request that was never sent, because the worker had ended
