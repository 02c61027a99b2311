"""A circuit breaker for each provider of models: calls are not sent while a provider fails.

closed → open after 5 failures in a row → half-open after 60 s, in which at most 3 calls at a time are admitted to try
it out → closed after 3 of them have succeeded, or open again after one has failed. `admitted` and `settled` are this
table as functions; `Breaker` has the state of each key.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from bridge.errors import CircuitOpen

FAILURES = 5  # in a row, which open a circuit
OPEN_FOR = 60  # seconds
PROBES = 3  # at once
SUCCESSES = 3  # which close a circuit
PROBE_WAIT = 1  # seconds after which to ask again while all probes run

LIMIT = 1000  # keys; the one that failed first is forgotten

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"


class Circuit(NamedTuple):
    """The state of a key. since: when it was entered. failures: in a row, while closed. probes: calls that were
    admitted while half-open and have not ended; successes: those that have succeeded."""

    state: str = CLOSED
    since: float = 0.0
    failures: int = 0
    probes: int = 0
    successes: int = 0


NEW = Circuit()
Permit = float | None  # of a probe: the beginning of the half-open state that admitted it


class Breaker:
    """Counts failures by key and refuses calls of a key that fails. Any thread may use it.

    clock: returns seconds, which never decrease. on_change: called with the key, the state before and the state after,
    in the thread whose call changed it. A key without recent failures takes no memory, and no lock.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[str, str, str], object] | None = None,
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._lock = threading.RLock()  # reentrant, because signal handlers may call the pool
        self._circuits: dict[str, Circuit] = {}

    def admit(self, key: str) -> Permit:
        """Return the permit of a call, which has to be passed to `settle` when the call ends, however it ends.

        Raises CircuitOpen, with `retry_after` in its details, if the call must not be sent.
        """
        if key not in self._circuits:
            return None
        with self._lock:
            before = self._circuits.get(key, NEW)
            now = self._clock()
            after = admitted(before, now)
            if after is None:
                raise _refusal(key, before, now)
            self._store(key, after)
        self._report(key, before, after)
        return after.since if after.state == HALF_OPEN else None

    def settle(self, key: str, permit: Permit, succeeded: bool | None) -> None:
        """Count the end of a call. succeeded: None if the call says nothing about the provider, as a cancelled one."""
        if succeeded is not False and key not in self._circuits:
            return
        with self._lock:
            before = self._circuits.get(key, NEW)
            after = settled(before, permit, succeeded, self._clock())
            self._store(key, after)
        self._report(key, before, after)

    def state(self, key: str) -> str:
        """Return "closed", "open" or "half_open". An open circuit becomes half-open with the next call."""
        return self._circuits.get(key, NEW).state

    def _store(self, key: str, circuit: Circuit) -> None:
        if circuit == NEW:
            self._circuits.pop(key, None)
            return
        if key not in self._circuits and len(self._circuits) >= LIMIT:
            del self._circuits[next(iter(self._circuits))]
        self._circuits[key] = circuit

    def _report(self, key: str, before: Circuit, after: Circuit) -> None:
        if self._on_change and before.state != after.state:
            self._on_change(key, before.state, after.state)


def admitted(circuit: Circuit, now: float) -> Circuit | None:
    """Return the circuit after a call was admitted, or None if it must not be."""
    if circuit.state == CLOSED:
        return circuit
    if circuit.state == OPEN:
        return Circuit(HALF_OPEN, since=now, probes=1) if now >= circuit.since + OPEN_FOR else None
    return circuit._replace(probes=circuit.probes + 1) if circuit.probes < PROBES else None


def settled(circuit: Circuit, permit: Permit, succeeded: bool | None, now: float) -> Circuit:
    """Return the circuit after a call has ended. A call that an earlier state admitted changes nothing."""
    if circuit.state == CLOSED and permit is None and succeeded is not None:
        failures = 0 if succeeded else circuit.failures + 1
        return Circuit(OPEN, since=now) if failures >= FAILURES else Circuit(failures=failures)
    if circuit.state == HALF_OPEN and permit == circuit.since:
        if succeeded is False:
            return Circuit(OPEN, since=now)
        successes = circuit.successes + bool(succeeded)
        return NEW if successes >= SUCCESSES else circuit._replace(probes=circuit.probes - 1, successes=successes)
    return circuit


def _refusal(key: str, circuit: Circuit, now: float) -> CircuitOpen:
    wait = circuit.since + OPEN_FOR - now if circuit.state == OPEN else PROBE_WAIT
    return CircuitOpen(f"calls of {key} are not sent after {FAILURES} failures in a row", retry_after=wait)
