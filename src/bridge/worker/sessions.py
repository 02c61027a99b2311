"""Sessions: what a host's user is to the worker."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Any

from bridge.worker.lanes import Order


class Session:
    """data: the host's own values. state: what the adapter keeps. order: its calls'.

    shared: what the adapter keeps for all sessions of the worker; one dict, never replaced.
    """

    __slots__ = ("data", "id", "order", "shared", "state")

    def __init__(self, session_id: str, state: Sized, shared: dict[str, Any]) -> None:
        self.id = session_id
        self.state = state
        self.shared = shared
        self.data: dict[str, Any] = {}
        self.order = Order()


class Sessions:
    """The live sessions by id, made on first use. Only the reading thread changes the table.

    default_id: the session of calls that name none.
    """

    def __init__(self, default_id: str, new_state: Callable[[], Sized]) -> None:
        self.default_id = default_id
        self._new_state = new_state
        self._shared: dict[str, Any] = {}
        self._to_come = Session("", new_state(), self._shared)
        self._table: dict[str, Session] = {}

    def open(self, session_id: str | None) -> Session:
        """The session of that id (None: the default one)."""
        session_id = self.default_id if session_id is None else session_id
        session = self._table.get(session_id)
        if session is None:
            session = self._table[session_id] = Session(session_id, self._new_state(), self._shared)
            self._wait_for_everyone(session)
        return session

    def everyone(self) -> list[Session]:
        """For a change that all sessions are to see: the default one first, all others, and the
        one that stands for those to come."""
        default = self.open(None)
        others = [session for session in self._table.values() if session is not default]
        return [default, *others, self._to_come]

    def detach(self, session_id: str | None = None) -> list[Session]:
        """Take one session, or all, out of the table. Calls that have them keep them; later
        calls get new ones."""
        if session_id is None:
            detached = list(self._table.values())
            self._table.clear()
        else:
            found = self._table.pop(session_id, None)
            detached = [] if found is None else [found]
        return detached

    def __len__(self) -> int:
        return len(self._table)

    def _wait_for_everyone(self, session: Session) -> None:
        """The first turn of a new session comes when the changes for everyone are made."""

        def made() -> None:
            self._to_come.order.leave()
            session.order.leave()

        session.order.enter(lambda: None)
        self._to_come.order.enter(made)

    @property
    def programs(self) -> int:
        """How many programs all sessions hold together."""
        return sum(len(session.state) for session in list(self._table.values()))
