"""The live sessions of a worker: found by id, made on first use, ended when their time is over."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from bridge import errors
from bridge.records import Quota, Records
from bridge.telemetry.logs import debug, warn
from bridge.worker.expiry import Expiry
from bridge.worker.order import Order
from bridge.worker.session import Session

if TYPE_CHECKING:
    from bridge.worker.stores.sqlite import Store

LONGEST_ID = 512  # characters
LONGEST_TTL = 31_536_000.0  # seconds: a year
WARN_AT = 0.8  # of the limit
AT_ONCE = 16  # sessions that one call drops because their time is over
REMEMBERED = 1000  # ended sessions, to say so to who comes back


class Sessions:
    """The live sessions by id, made on first use. Only the reading thread changes the table.

    default_id: the session of calls that name none; it neither expires nor gives way to others.
    limit: how many there may be at once; then the one that was not used for longest gives way.
    ttl: seconds that a session lives without a call, unless it has its own. quota: the same.
    store: where durable sessions are; what expires or gives way stays there.
    in_use(): those that have open calls.

    shared: what the adapter keeps for all sessions, at first what the operator sets; never changed,
    only replaced. changes: the order of calls that replace it.
    """

    def __init__(
        self,
        default_id: str,
        new_state: Callable[[Records], Any],
        in_use: Callable[[], Collection[Session]],
        *,
        limit: int,
        ttl: float,
        quota: Quota,
        store: Store | None,
        shared: dict[str, Any],
    ) -> None:
        self.default_id = default_id
        self.limit = limit
        self.ttl = ttl
        self.quota = quota
        self.store = store
        self.changes = Order()
        self.shared = shared
        self.expired = 0
        self.evicted = 0
        self._new_state = new_state
        self._in_use = in_use
        self._table: OrderedDict[str, Session] = OrderedDict()  # the last used one at the end
        self._ending: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._expiry = Expiry()
        self._has_warned = False

    def open(self, session_id: str | None) -> Session:
        """Return the session of that id (None: the default one).

        Raises InvalidArgs for what cannot be an id, Overloaded where all have open calls.
        """
        session_id = self.default_id if session_id is None else session_id
        now, in_use = time.monotonic(), _Once(self._in_use)
        for each in self._expiry.due(now, AT_ONCE):
            self._expire(each, now, in_use)
        session = self._table.get(session_id)
        if session is not None and not self._is_over(session, in_use):
            self._table.move_to_end(session_id)
        else:
            session = self._add(session_id, now, in_use)
        session.used = now
        return session

    def detach(self, session_id: str) -> list[Session]:
        """Take one session out of the table. Calls that have it keep it; later calls get a new
        one. That waits where there is a store, which may have the session though the table has
        not: what it reads there must not be what the calls before it still change."""
        session = self._table.pop(session_id, None)
        if session is None:
            if self.store is None:
                return []
            session = self._new(session_id)
        self._gone.pop(session_id, None)
        self._expiry.remove(session)
        self._note_ending(session)
        return [session]

    def detach_all(self) -> list[Session]:
        """Detach all sessions."""
        detached = list(self._table.values())
        self._table.clear()
        self._gone.clear()
        self._expiry = Expiry()
        for session in detached:
            self._note_ending(session)
        return detached

    def load(self, session: Session) -> None:
        """Have it as it is stored: see `Session.load`."""
        ttl = session.ttl
        session.load()
        if session.ttl != ttl:
            self._expiry.add(session, session.used)

    def find(self, session_id: str) -> Session | None:
        """Return the live session of that id, not used by that."""
        session = self._table.get(session_id)
        return None if session is None or self._is_over(session, _Once(self._in_use)) else session

    def why_gone(self, session_id: str) -> str | None:
        """Return why the session ended, "expired" or "evicted", where that is known."""
        is_over = session_id in self._table and self.find(session_id) is None
        return "expired" if is_over else self._gone.get(session_id)

    def live(self, limit: int | None = None) -> list[Session]:
        """Return all sessions, or at most so many; the last used one first."""
        in_use = _Once(self._in_use)
        every = list(reversed(self._table.values()))
        return list(islice((one for one in every if not self._is_over(one, in_use)), limit))

    def configure(self, session: Session, ttl: float, quota: Quota, durable: bool) -> None:
        """Give the session another time to live (seconds) and quota; durable: and a place in the
        store, if it has none yet. Raises NotAllowed, SessionLost, StoreFailed; then nothing is
        changed."""
        if durable and not session.is_durable:
            session.make_durable(ttl, quota)
        else:
            session.configure(ttl, quota)
        self._expiry.add(session, session.used)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def programs(self) -> int:
        """How many programs all sessions hold together."""
        return sum(session.programs for session in list(self._table.values()))

    def _new(self, session_id: str) -> Session:
        is_default = session_id == self.default_id
        inherited = _nothing if is_default else self._default_state
        return Session(session_id, self._new_state, self.ttl, self.quota, self.store, inherited)

    def _default_state(self) -> Any:
        """Return the default session's state, which the others inherit.

        The session is not opened in the store for that: it stays with the worker that has it.
        """
        default = self._table.get(self.default_id)
        if self.store is None:
            return self._new_state(Records(self.quota)) if default is None else default.state
        is_here = default is not None and default.is_loaded and default.failure is None
        if default is None or not is_here:
            return self._new_state(self.store.records(self.default_id))
        if default.is_durable and not self.store.is_owner(default.id, default.epoch):
            return self._new_state(self.store.records(self.default_id))
        return default.state

    def _add(self, session_id: str, now: float, in_use: _Once) -> Session:
        if session_id not in self._table:
            _check_id(session_id)
            self._make_room(in_use)
        before = self._table.pop(session_id, None)
        session = self._new(session_id)
        if before is not None:
            self._drop(before, "expired")
        self._gone.pop(session_id, None)
        session.used = now
        self._table[session_id] = session
        self._expiry.add(session, now)
        ending = self._ending.get(session_id)
        if ending is not None:
            self._wait_for(ending, session)
        return session

    def _is_over(self, session: Session, in_use: _Once) -> bool:
        """Whether calls to come get another one."""
        if session.failure is not None:
            return True
        if not session.is_late or session.id == self.default_id:
            return False
        # Again, because its last call may have ended in between.
        return session not in in_use() and session.is_late

    def _expire(self, session_id: str, now: float, in_use: _Once) -> None:
        session = self._table.get(session_id)
        if session is None or session.slot > now:
            return
        if self._is_over(session, in_use):
            del self._table[session_id]
            self._drop(session, "expired")
        else:
            self._expiry.add(session, now if session.is_late else session.used)

    def _make_room(self, in_use: _Once) -> None:
        used = len(self._table) + 1 - (self.default_id in self._table)
        if used < WARN_AT * self.limit:
            self._has_warned = False
        elif not self._has_warned:
            self._has_warned = True
            warn(f"{used} sessions of at most {self.limit}; then the least recently used give way")
        if used <= self.limit:
            return
        for _ in range(len(self._table)):
            session_id, session = next(iter(self._table.items()))
            if session not in in_use() and session_id != self.default_id:
                del self._table[session_id]
                self._drop(session, "evicted")
                return
            self._table.move_to_end(session_id)
        raise errors.Overloaded(f"all of {self.limit} sessions have open calls", retry_after=1.0)

    def _drop(self, session: Session, why: str) -> None:
        """Drop a session that is out of the table already."""
        debug("session %r is gone: %s", session.id, why)
        self._expiry.remove(session)
        if session.failure is not None:
            self._note_ending(session)
            return
        if why == "expired":
            self.expired += 1
        else:
            self.evicted += 1
        if not session.is_durable:
            self._gone[session.id] = why
            if len(self._gone) > REMEMBERED:
                self._gone.popitem(last=False)

    def _note_ending(self, session: Session) -> None:
        if self.store is not None:
            self._ending[session.id] = session

    def _wait_for(self, other: Session, session: Session) -> None:
        """Let the next turn in `session` come when those in `other` are over."""

        def made() -> None:
            other.order.leave()
            session.order.leave()

        session.order.enter(lambda: other.order.enter(made))


class _Once:
    """Asks when it is first called, and keeps the answer."""

    __slots__ = ("_answer", "_ask")

    def __init__(self, ask: Callable[[], Collection[Session]]) -> None:
        self._ask = ask
        self._answer: Collection[Session] | None = None

    def __call__(self) -> Collection[Session]:
        if self._answer is None:
            self._answer = self._ask()
        return self._answer


def _nothing() -> None:
    return None


def _check_id(session_id: str) -> None:
    if not 0 < len(session_id) <= LONGEST_ID:
        raise errors.InvalidArgs(
            f"a session id has 1 to {LONGEST_ID} characters, not {len(session_id)}",
            path="session_id",
        )
