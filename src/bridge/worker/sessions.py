"""The live sessions of a worker: created on first use, ended when they expire or when there are too many."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import msgspec

from bridge import errors
from bridge.records import Quota, Records
from bridge.telemetry.logs import debug, warn
from bridge.worker.expiry import Expiry
from bridge.worker.order import Order
from bridge.worker.session import Session

if TYPE_CHECKING:
    from bridge.adapter import Adapter
    from bridge.worker.stores.protocol import Store

LONGEST_ID = 512  # characters
WARN_AT = 0.8  # of the limit
AT_ONCE = 16  # expired sessions that one call drops
REMEMBERED = 1000  # ended sessions whose reason is remembered


class SessionArgs(msgspec.Struct, gc=False):
    """The args of `get_session`; in other calls, the argument that names the session if the envelope names none."""

    session_id: str | None = None


class Sessions:
    """Holds the live sessions by id. Only the thread that reads requests adds and removes sessions.

    adapter: makes the sessions' state and names the kind of records that is counted.
    in_use(): returns the sessions with open calls.
    default_id: the session of calls that name none; it neither expires nor is evicted.
    limit: the largest number of sessions; beyond it, the least recently used one is evicted.
    ttl: seconds without a call after which a session expires. quota: limits its records. Both are defaults for
    sessions without their own.
    store: has the durable sessions, also after they have expired or have been evicted; None: there is no store.
    shared: what the adapter shares among all sessions, at first the operator's settings. The dict is replaced as a
    whole and never changed.

    changes: the order of the calls that replace `shared`. counted: the kind of records that is counted.
    """

    def __init__(
        self,
        default_id: str,
        adapter: Adapter,
        in_use: Callable[[], Collection[Session]],
        *,
        limit: int,
        ttl: float,
        quota: Quota,
        store: Store | None,
        shared: dict[str, Any],
    ) -> None:
        self.default_id = default_id
        self.counted = adapter.counted
        self.limit = limit
        self.ttl = ttl
        self.quota = quota
        self.store = store
        self.changes = Order()
        self.shared = shared
        self.expired = 0
        self.evicted = 0
        self._new_state = adapter.new_state
        self._in_use = in_use
        self._table: OrderedDict[str, Session] = OrderedDict()  # the last used session is last
        self._ending: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._expiry = Expiry()
        self._taken: deque[str] = deque()
        self._has_warned = False
        if store is not None:
            store.watch(self._note_taken)

    def open(self, session_id: str | None) -> Session:
        """Return the session of that id (None: the default one); create it if it does not exist or is over.

        Raises InvalidArgs for an invalid id, Overloaded if the limit is reached and every session has open calls.
        """
        session_id = self.default_id if session_id is None else session_id
        while self._taken:
            self._remove_taken(self._taken.popleft())
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
        """Take one session out of the table and return it, if there is one: later calls get a new session.

        With a store, the first call of the new session waits for the last call of the old one, because it must not
        read records from the store that the old calls still change. The session may exist in the store only.
        """
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

    def load(self, session: Session, *, check: bool) -> None:
        """Load the session from the store if it is not loaded yet: see `Session.load`."""
        ttl = session.ttl
        session.load(check=check)
        if session.ttl != ttl:
            self._expiry.add(session, session.used)

    def find(self, session_id: str) -> Session | None:
        """Return the live session of that id, if there is one, without counting that as a use."""
        session = self._table.get(session_id)
        return None if session is None or self._is_over(session, _Once(self._in_use)) else session

    def why_gone(self, session_id: str) -> str | None:
        """Return why the session ended, "expired" or "evicted"; None if that is unknown."""
        is_over = session_id in self._table and self.find(session_id) is None
        return "expired" if is_over else self._gone.get(session_id)

    def live(self, limit: int | None = None) -> list[Session]:
        """Return all live sessions, or at most `limit` of them, the most recently used first."""
        in_use = _Once(self._in_use)
        every = list(reversed(self._table.values()))
        return list(islice((one for one in every if not self._is_over(one, in_use)), limit))

    def configure(self, session: Session, ttl: float, quota: Quota, durable: bool) -> None:
        """Set the session's time to live (seconds) and quota; durable: also write it to the store if it is not there.

        Raises NotAllowed, SessionLost, StoreFailed, and then changes nothing.
        """
        if durable and not session.is_durable:
            session.make_durable(ttl, quota)
        else:
            session.configure(ttl, quota)
        self._expiry.add(session, session.used)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def counted_records(self) -> int:
        """Return how many records of the counted kind all live sessions have together."""
        return sum(session.records.counted_records for session in list(self._table.values()))

    def _new(self, session_id: str) -> Session:
        is_default = session_id == self.default_id
        inherited = _nothing if is_default else self._default_state
        return Session(session_id, self._new_records(), self._new_state, self.ttl, self.store, inherited)

    def _new_records(self) -> Records:
        return Records(self.quota, self.counted)

    def _default_state(self) -> Any:
        """Return the default session's state, which the others inherit.

        A stored default session is read without taking it from the worker that owns it.
        """
        default = self._table.get(self.default_id)
        if self.store is None:
            return self._new_state(self._new_records()) if default is None else default.state
        if (
            default is not None
            and default.is_loaded
            and default.failure is None
            and (not default.is_durable or self.store.is_owner(default.id, default.epoch))
        ):
            return default.state
        from bridge.worker.stores.stored_records import StoredRecords  # only workers with a store need it

        return self._new_state(StoredRecords(self.default_id, self.store))

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
        """Return whether later calls get a new session instead."""
        if session.failure is not None:
            return True
        if not session.is_late or session.id == self.default_id:
            return False
        # `is_late` again: the session's last call may have ended, which counts as a use, since the first check.
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

    def _note_taken(self, session_id: str, epoch: int) -> None:
        """Stop to use a session that another worker has taken under that epoch. On any thread: see `Store.watch`."""
        session = self._table.get(session_id)
        if session is not None and 0 < session.epoch < epoch:
            session.failure = errors.SessionLost.of(session_id)
            self._taken.append(session_id)

    def _remove_taken(self, session_id: str) -> None:
        session = self._table.get(session_id)
        if session is not None and session.failure is not None:
            del self._table[session_id]
            self._drop(session, "taken by another worker")

    def _make_room(self, in_use: _Once) -> None:
        used = len(self._table) + 1 - (self.default_id in self._table)
        if used < WARN_AT * self.limit:
            self._has_warned = False
        elif not self._has_warned:
            self._has_warned = True
            warn(f"{used} of at most {self.limit} sessions; beyond that, the least recently used one is evicted")
        if used <= self.limit:
            return
        for _ in range(len(self._table)):
            session_id, session = next(iter(self._table.items()))
            if session not in in_use() and session_id != self.default_id:
                del self._table[session_id]
                self._drop(session, "evicted")
                return
            self._table.move_to_end(session_id)
        raise errors.Overloaded.refused(f"all {self.limit} sessions have open calls")

    def _drop(self, session: Session, why: str) -> None:
        """Note why a session that is no longer in the table has ended."""
        debug("session %r has ended: %s", session.id, why)
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
        session.has_ended = True
        if self.store is not None:
            self._ending[session.id] = session

    def _wait_for(self, other: Session, session: Session) -> None:
        """Make the calls of `session` wait until the calls of `other` have ended."""

        def leave_both() -> None:
            other.order.leave()
            session.order.leave()

        session.order.enter(lambda: other.order.enter(leave_both))


class _Once:
    """Calls `function` when it is called for the first time, and returns the same result after that."""

    __slots__ = ("_function", "_result")

    def __init__(self, function: Callable[[], Collection[Session]]) -> None:
        self._function = function
        self._result: Collection[Session] | None = None

    def __call__(self) -> Collection[Session]:
        if self._result is None:
            self._result = self._function()
        return self._result


def _nothing() -> None:
    return None


def _check_id(session_id: str) -> None:
    if not 0 < len(session_id) <= LONGEST_ID:
        raise errors.InvalidArgs(
            f"session_id: must have 1 to {LONGEST_ID} characters, got {len(session_id)}",
            path="session_id",
        )
