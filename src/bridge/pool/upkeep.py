"""What a pool does from time to time: look after its workers, and forget the sessions that have ended."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

from bridge import errors
from bridge.pool.sessions import Expiry, Home, Sessions
from bridge.pool.slots import Slot, Slots
from bridge.pool.supervisor import Supervisor

TICK = 0.5  # seconds
CHECK = 2.0  # seconds between two pings of a worker
MOST_MISSED = 3  # pings in a row without an answer, after which a worker is ended
DRAIN_SECONDS = 60.0  # for the sessions of a worker that is replaced
ANSWER_SECONDS = 10.0  # for what a worker is asked here


@dataclass(frozen=True, slots=True)
class Life:
    """The limits of a worker's life. None: no limit.

    idle: seconds without a call after which a worker that the pool could do without ends, or that of a session.
    max_requests, max_age (seconds), max_rss (bytes): after which a worker is replaced; the first two ± 10 %.
    """

    idle: float | None = 30.0
    max_requests: int | None = None
    max_age: float | None = None
    max_rss: int | None = None


class Upkeep:
    """Runs on the clock of the supervisor until that is stopped."""

    def __init__(self, slots: Slots, sessions: Sessions, supervisor: Supervisor, life: Life) -> None:
        self._slots = slots
        self._sessions = sessions
        self._supervisor = supervisor
        self._life = life
        self._is_asking = False
        self._next_check = 0.0

    def start(self) -> None:
        """Begin."""
        self._supervisor.clock.later(TICK, self._tick)

    def _tick(self) -> None:
        try:
            now = monotonic()
            with self._slots.changed:
                slots = [slot for slot in self._slots.all if slot.state in ("ready", "draining")]
            is_time = now >= self._next_check
            if is_time:
                self._next_check = now + CHECK
            for slot in slots:
                if is_time:
                    self._check(slot)
                self._look_at(slot, now)
            if is_time and not self._is_asking:
                self._is_asking = True
                self._supervisor.threads.run(lambda: self._ask(slots))
        finally:
            self.start()

    def _check(self, slot: Slot) -> None:
        """Ping a worker. End one that has not answered several times, and has not done anything else meanwhile."""
        progress = slot.progress_made()
        if slot.ping is None or slot.ping.has_ended or progress != slot.progress:
            slot.missed = 0
        else:
            slot.missed += 1
        slot.progress = progress
        if slot.missed >= MOST_MISSED:
            self._supervisor.kill(slot, f"the worker has not answered for {MOST_MISSED * CHECK:g} s")
        elif slot.ping is None or slot.ping.has_ended:
            slot.send_ping()

    def _look_at(self, slot: Slot, now: float) -> None:
        life = self._life
        if slot.calls_of_users():
            slot.idle_since = now
        idle = now - slot.idle_since
        if slot.state == "draining":
            has_sessions = now - slot.since < DRAIN_SECONDS and self._sessions.of(slot)
            if (not slot.calls_of_users() and not has_sessions) or now - slot.since >= DRAIN_SECONDS:
                self._supervisor.end(slot)
        elif slot.session_id is not None:
            if not self._sessions.has(slot.session_id, slot):
                self._supervisor.drain(slot, "its session has ended")
            elif life.idle is not None and idle >= life.idle:
                self._sessions.end(slot.session_id)
                self._supervisor.drain(slot, f"its session was not called for {life.idle:g} s")
        elif life.max_requests is not None and slot.served >= life.max_requests * slot.variation:
            self._supervisor.recycle(slot, f"it has answered {slot.served} calls")
        elif life.max_age is not None and now - slot.since >= life.max_age * slot.variation:
            self._supervisor.recycle(slot, f"it is {now - slot.since:.0f} s old")
        elif life.idle is not None and idle >= life.idle and self._may_end(slot):
            self._supervisor.drain(slot, f"it was not called for {life.idle:g} s")

    def _may_end(self, slot: Slot) -> bool:
        return self._slots.count("ready") > self._supervisor.least and not self._sessions.of(slot)

    def _ask(self, slots: list[Slot]) -> None:
        """Ask workers which idle sessions have ended, and how much memory they take."""
        try:
            for session_id, home in self._sessions.due(monotonic()):
                if home.slot.is_usable:
                    self._ask_for(session_id, home)
            if self._life.max_rss is not None:
                for slot in slots:
                    self._compare_memory(slot, self._life.max_rss)
        finally:
            self._is_asking = False

    def _ask_for(self, session_id: str, home: Home) -> None:
        asked = monotonic()
        try:
            found = home.slot.ask("get_session", {"session_id": session_id}, ANSWER_SECONDS)
        except (errors.SessionNotFound, errors.InvalidArgs):  # the id may be one that no session can have
            self._sessions.checked(session_id, home, asked, None)
        except errors.BridgeError:
            return  # later
        else:
            can_move = found["durable"] and home.slot.state == "draining"
            is_there = found["live"] and not can_move
            expiry = Expiry(found["idle_s"], found["ttl_s"]) if is_there else None
            self._sessions.checked(session_id, home, asked, expiry, goes_on=found["durable"])

    def _compare_memory(self, slot: Slot, most: int) -> None:
        if slot.session_id is not None or slot.state != "ready":
            return
        try:
            rss = slot.ask("get_stats", {"include": ["process"]}, ANSWER_SECONDS)["process"]["rss"]
        except errors.BridgeError:
            return
        if rss > most:
            self._supervisor.recycle(slot, f"it takes {rss >> 20} MiB")
