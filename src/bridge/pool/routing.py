"""Which slot gets a request: the home of its session, or any that has room."""

from __future__ import annotations

from time import monotonic

from bridge import errors
from bridge.pool.choice import choose, least_loaded
from bridge.pool.requests import Request
from bridge.pool.sessions import Home, Sessions
from bridge.pool.slots import Slot, Slots
from bridge.pool.supervisor import Supervisor

ENDS_OR_BEGINS = ("create_session", "cleanup_session")  # commands that succeed although the session was lost


class Router:
    """Finds slots. is_strict: whether calls of a session are never made elsewhere than where it is. isolates: whether
    each session has a worker of its own, of which there are at most `most_isolated`."""

    def __init__(
        self,
        slots: Slots,
        sessions: Sessions,
        supervisor: Supervisor,
        is_strict: bool,
        isolates: bool,
        most_isolated: int,
    ) -> None:
        self._slots = slots
        self._homes = sessions.homes
        self._sessions = sessions
        self._supervisor = supervisor
        self._is_strict = is_strict
        self._isolates = isolates
        self._most_isolated = most_isolated

    def quick(self, session_id: str | None) -> Slot | None:
        """Return a slot if that needs no waiting and no decision, without a lock; None otherwise."""
        if session_id is None:
            return choose(self._slots.ready)
        home = self._homes.get(session_id)
        if home is None or home.slot.state != "ready":
            return None
        home.used = monotonic()
        return home.slot

    def find(self, request: Request) -> Slot:
        """Return the slot for a request, waiting for one that starts.

        Raises DeadlineExceeded, Overloaded, SessionLost (once for each session), and WorkerCrashed if no worker starts.
        """
        if request.session is None:
            return self._any(request)
        while True:
            if self._supervisor.closed:
                raise errors.WorkerCrashed(self._supervisor.closed)
            home = self._home(request, request.session)
            home.used = monotonic()
            if home.slot.is_usable:
                return home.slot
            with self._slots.changed:
                if is_starting := home.slot.state == "starting":
                    self._wait(request)
            if not is_starting:
                self._leave_home(request, request.session, home)

    def await_ready(self, request: Request) -> None:
        """Wait until a worker is ready. Raises the errors of `find`."""
        with self._slots.changed:
            while not self._slots.ready:
                self._wait(request)

    def _home(self, request: Request, session_id: str) -> Home:
        """Return the home of a session. A session that has none gets one."""
        home = self._homes.get(session_id)
        if home is not None:
            return home
        if not self._isolates:
            return self._homes.setdefault(session_id, Home(self._any(request)))
        with self._slots.changed:
            if session_id not in self._homes:
                isolated = sum(slot.session_id is not None for slot in self._slots.all)
                if isolated >= self._most_isolated:
                    raise errors.Overloaded.refused(f"{isolated} sessions have a worker each, which is the limit")
                self._homes[session_id] = Home(self._supervisor.add_isolated(session_id))
            return self._homes[session_id]

    def _leave_home(self, request: Request, session_id: str, home: Home) -> None:
        """Find out what becomes of a session whose worker has ended. Raises SessionLost if it is lost."""
        slot = home.slot
        if slot.state != "gone":
            self._supervisor.ended(slot)
        if slot.error is not None:  # the worker of an isolated session did not start
            self._sessions.remove(session_id, home)
            raise slot.error
        is_kept = not self._is_strict or request.command in ENDS_OR_BEGINS or self._is_stored(request, session_id)
        if self._sessions.remove(session_id, home, goes_on=is_kept) and not is_kept:
            reason = slot.connection.end_reason
            raise errors.SessionLost(f"session {session_id!r} was lost with its worker: {reason}")

    def _is_stored(self, request: Request, session_id: str) -> bool:
        """Return whether a session is durable, so that another worker can load it."""
        slot = self._any(request)
        try:
            found = slot.ask("get_session", {"session_id": session_id}, request.left())
        except errors.SessionNotFound:
            return False
        return bool(found["durable"])

    def _any(self, request: Request) -> Slot:
        while True:
            with self._slots.changed:
                ready = self._slots.ready
                others = [slot for slot in ready if slot not in request.avoided]
                slot = choose(others or ready) or least_loaded(ready)
                if slot is not None:
                    return slot
                if ready and not self._supervisor.grow():
                    raise errors.Overloaded.refused(f"all {len(ready)} workers of the pool are busy")
                self._wait(request)

    def _wait(self, request: Request) -> None:
        """Wait until a slot has changed its state. Raises DeadlineExceeded, and WorkerCrashed if none will be ready."""
        with self._slots.changed:
            supervisor = self._supervisor
            if supervisor.closed:
                raise errors.WorkerCrashed(supervisor.closed)
            if not self._slots.ready and supervisor.is_failing and supervisor.last_failure is not None:
                raise supervisor.last_failure
            self._slots.changed.wait(request.left())
