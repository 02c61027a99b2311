"""The life of a pool's workers: starting them, replacing those that end, growing and stopping."""

from __future__ import annotations

import itertools
import logging
from functools import partial
from time import monotonic

from bridge import errors
from bridge.host.client import STOP_TIMEOUT, Client
from bridge.host.functions import Functions
from bridge.host.threads import Threads
from bridge.pool.clock import Clock
from bridge.pool.journal import Journal
from bridge.pool.launcher import Launcher, with_functions
from bridge.pool.slots import History, OnTransition, Slot, Slots

EARLY = 10.0  # seconds after its start in which the death of a worker that has served no call is early
FAILING_FOR = 60.0  # seconds after an early death without another one, after which they are no row anymore
MOST_EARLY = 5  # early deaths in a row, after which the pool does not grow, and fails calls that have no worker
SHORTEST_PAUSE = 0.1  # seconds before the next start after an early death; doubled each time
LONGEST_PAUSE = 5.0

MOST_FAULTS = 5  # workers of a slot in a row that ended by a fault before they had served a call
EJECTED_FOR = 5.0  # seconds before the next one is started after that; doubled each time
LONGEST_EJECTION = 60.0


class Supervisor:
    """Starts workers and keeps their number between `least` and `most`.

    launcher: gets the workers, which call `functions` of this process. journal: gives them what all workers share,
    before their first call. early: deaths of workers soon after their start, in a row. closed: why no calls are taken
    anymore.
    """

    slot_type: type[Slot] = Slot

    def __init__(
        self,
        slots: Slots,
        launcher: Launcher,
        functions: Functions,
        journal: Journal,
        threads: Threads,
        report: OnTransition,
    ) -> None:
        self._slots = slots
        self._launcher = launcher
        self._functions = functions
        self._journal = journal
        self._report = report
        self._numbers = itertools.count()
        self.threads = threads
        self.clock = Clock("bridge-pool-clock")
        self.least = self.most = 0
        self.early = 0
        self._last_early = 0.0
        self.last_failure: errors.BridgeError | None = None
        self.closed: str | None = None

    def start(self, least: int, most: int) -> None:
        """Start `least` workers, and wait until they are ready. Raises the error of one that does not start."""
        self.least, self.most = least, most
        for _ in range(least):
            self._add(self.slot_type(next(self._numbers), History()))
        with self._slots.changed:
            while self._slots.count("ready") < least and self.last_failure is None:
                self._slots.changed.wait()
        if self.last_failure is not None:
            self.stop(0.0)
            raise self.last_failure

    def grow(self) -> bool:
        """Start one more worker, unless one is starting already, and return whether one more will be there."""
        with self._slots.changed:
            if self._slots.count("starting"):
                return True
            count = self._slots.count("ready", "ejected")
            if self.closed or count >= self.most or self.is_failing:
                return False
            slot = self.slot_type(next(self._numbers), History())
        self._add(slot)
        return True

    def add_isolated(self, session_id: str) -> Slot:
        """Start a worker for one session."""
        slot = self.slot_type(next(self._numbers), History(), session_id=session_id)
        self._add(slot)
        return slot

    @property
    def is_failing(self) -> bool:
        """Return whether workers die again and again soon after their start."""
        return self.early >= MOST_EARLY and monotonic() - self._last_early < FAILING_FOR

    def ended(self, slot: Slot) -> None:
        """Replace a slot whose worker has ended or cannot be used anymore. Has no effect when that has been done."""
        was_ready, since = slot.state == "ready", slot.since
        if not self._slots.move(slot, "gone", slot.connection.end_reason):
            return
        self._journal.leave(slot)
        if was_ready and slot.session_id is None:
            self.last_failure = slot.connection.crashed()
            self._replace(slot, is_early=slot.served == 0 and monotonic() - since < EARLY)

    def recycle(self, slot: Slot, reason: str) -> None:
        """Start a worker that takes the place of a slot's, which gets no more calls as soon as the new one is ready."""
        with self._slots.changed:
            if slot.state != "ready" or any(each.replaces is slot for each in self._slots.all):
                return
            successor = self.slot_type(next(self._numbers), History())
            successor.replaces = slot
        self._report({"event": "recycle", "slot": slot.number, "pid": slot.pid, "reason": reason})
        self._add(successor)

    def renew(self, reason: str) -> None:
        """Recycle all workers, with those of a new template, and wait until the new ones have taken their places."""
        self._launcher.renew()
        with self._slots.changed:
            before = self._slots.ready
            for slot in before:
                self.recycle(slot, reason)
            while not self.closed and any(slot.state == "ready" for slot in before):
                if self.is_failing and self.last_failure is not None:
                    raise self.last_failure
                self._slots.changed.wait()

    def drain(self, slot: Slot, reason: str) -> None:
        """Send a slot only the calls of its sessions from now on. `end` ends it."""
        self._slots.move(slot, "draining", reason)

    def end(self, slot: Slot) -> None:
        """End the worker of a slot that is draining, after the grace period of its open calls."""
        if not slot.is_ending:
            slot.is_ending = True
            self.threads.run(partial(self._stop, slot, STOP_TIMEOUT))

    def kill(self, slot: Slot, reason: str) -> None:
        """End a worker that does not answer, and replace it."""
        slot.connection.transport.end_worker(reason)

    def close(self, reason: str) -> None:
        """Take no more calls and start no more workers."""
        with self._slots.changed:
            self.closed = reason
            for slot in self._slots.ready:
                self.drain(slot, reason)

    def stop(self, timeout: float | None = STOP_TIMEOUT) -> None:
        """Stop all workers after the grace period of their open calls; kill them after `timeout` seconds."""
        self.close("the pool was stopped")
        self.clock.stop()
        with self._slots.changed:
            slots = list(self._slots.all)
        for slot in slots:
            if slot.client is not None:
                self.threads.run(partial(self._stop, slot, timeout))
            else:
                self._slots.move(slot, "gone", "the pool was stopped")
        with self._slots.changed:
            while self._slots.all:
                self._slots.changed.wait()
        self._launcher.stop(timeout)

    def _stop(self, slot: Slot, timeout: float | None) -> None:
        assert slot.client is not None
        try:
            slot.client.stop(timeout)
        finally:
            self._journal.leave(slot)
            self._slots.move(slot, "gone", slot.connection.end_reason)

    def _add(self, slot: Slot, delay: float = 0.0) -> None:
        """Add a slot, and start its worker after `delay` seconds."""
        with self._slots.changed:
            if self.closed:
                return
            self._slots.add(slot)
        start = partial(self.threads.run, partial(self._start, slot))
        if delay:
            self.clock.later(delay, start)
        else:
            start()

    def _start(self, slot: Slot) -> None:
        """Start a slot's worker, and let the slot take calls."""
        if self.closed:
            self._slots.move(slot, "gone", self.closed)
            return
        if slot.state == "ejected":
            self._slots.move(slot, "starting")
        try:
            client = with_functions(partial(self._launch, slot), self._functions)
            slot.attach(client)
            self._journal.join(slot)
        except errors.BridgeError as error:
            self._failed(slot, error)
        except Exception as error:
            logging.getLogger("bridge.pool").exception("a worker cannot be started")
            self._failed(slot, errors.Internal(f"{type(error).__name__}: {errors.text_of(error)}"))
        else:
            if not self._slots.move(slot, "ready"):  # the pool was stopped
                client.kill()
                return
            slot.connection.on_lost = partial(self.ended, slot)
            if slot.connection.end_reason is not None:
                self.ended(slot)
            elif slot.replaces is not None:
                self.drain(slot.replaces, "another worker has taken its place")
                slot.replaces = None

    def _launch(self, slot: Slot) -> Client:
        """Return the client of a new worker for a slot."""
        return self._launcher.launch()

    def _failed(self, slot: Slot, error: errors.BridgeError) -> None:
        slot.error = self.last_failure = error
        self._journal.leave(slot)
        if slot.client is not None:
            slot.client.kill()
        if self._slots.move(slot, "gone", errors.text_of(error)) and slot.session_id is None:
            self._replace(slot, is_early=True)

    def _replace(self, slot: Slot, is_early: bool) -> None:
        """Start the next worker of a slot's number: later if workers fail soon after their start."""
        with self._slots.changed:
            if any(each.replaces is slot for each in self._slots.all):
                return  # it was being recycled: its successor starts already
        history = slot.history
        history.faults = history.faults + 1 if slot.served == 0 else 1
        if is_early and monotonic() - self._last_early < FAILING_FOR:
            self.early += 1
        else:
            self.early = int(is_early)
        self._last_early = monotonic()
        if history.faults >= MOST_FAULTS and self._may_eject():
            delay = min(LONGEST_EJECTION, EJECTED_FOR * 2.0**history.ejections)
            history.ejections += 1
            successor = self.slot_type(slot.number, history, "ejected")
        else:
            delay = min(LONGEST_PAUSE, SHORTEST_PAUSE * 2.0 ** (self.early - 1)) if self.early else 0.0
            successor = self.slot_type(slot.number, history)
        successor.replaces = slot.replaces
        self._add(successor, delay)

    def _may_eject(self) -> bool:
        """Return whether less than half of the slots are ejected."""
        ejected = self._slots.count("ejected")
        return 2 * (ejected + 1) <= ejected + 1 + self._slots.count("starting", "ready")
