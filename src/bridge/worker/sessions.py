"""Sessions: what a host's user is to the worker."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from bridge import errors
from bridge._dispatch import timestamp
from bridge._histogram import Recorder
from bridge.records import Quota, Records, Settings
from bridge.telemetry import warn
from bridge.worker.lanes import Order

if TYPE_CHECKING:
    from bridge.worker.store import Store

LONGEST_ID = 512  # characters
LONGEST_TTL = 31_536_000.0  # seconds: a year
WARN_AT = 0.8  # of the limit
AT_ONCE = 16  # sessions that one call drops because their time is over
REMEMBERED = 1000  # ended sessions, to say so to who comes back

_making = threading.Lock()


class Session:
    """records: what it keeps, for the store and the quota. state: what the adapter makes of them.
    order: its calls'. ttl: seconds. epoch: that it was opened with in the store; 0: it is not
    durable. recorder: what is counted of its calls.

    shared: what the adapter keeps for all sessions of the worker; one dict, never replaced.
    is_new: no call has ended in it yet, and no store had it.
    """

    __slots__ = (
        "__weakref__",
        "_new_state",
        "_state",
        "_store",
        "created_at",
        "epoch",
        "failure",
        "id",
        "is_loaded",
        "is_new",
        "order",
        "recorder",
        "records",
        "shared",
        "slot",
        "ttl",
        "used",
    )

    def __init__(
        self,
        session_id: str,
        new_state: Callable[[Records], Any],
        shared: dict[str, Any],
        ttl: float,
        quota: Quota,
        store: Store | None,
    ) -> None:
        self.id = session_id
        self.shared = shared
        self.records = Records(quota)
        self.order = Order()
        self.recorder = Recorder()
        self.ttl = ttl
        self.created_at = timestamp()
        self.used = 0.0
        self.slot = 0
        self.epoch = 0
        self.failure: errors.SessionLost | None = None
        self.is_new = True
        self.is_loaded = store is None
        self._store = store
        self._new_state = new_state
        self._state: Any = None

    @property
    def state(self) -> Any:
        if self._state is None:
            with _making:
                if self._state is None:
                    self._state = self._new_state(self.records)
        return self._state

    @property
    def is_durable(self) -> bool:
        return self.epoch != 0

    @property
    def programs(self) -> int:
        return len(self.records.of("program"))

    @property
    def idle(self) -> float:
        """Seconds since its last call ended or, if it is open, arrived; to the ms."""
        return round(max(0.0, time.monotonic() - self.used), 3)

    @property
    def is_late(self) -> bool:
        """Whether its time to live is over, unless it has an open call."""
        return time.monotonic() - self.used >= self.ttl

    def load(self) -> None:
        """Take the session over from the store, where it has one of that id; one that is here
        already must not have been taken over by another worker. By the call that has the turn.
        Raises SessionLost, StoreFailed."""
        if self._store is None:
            return
        if (
            self.is_durable
            and self.failure is None
            and not self._store.is_owner(self.id, self.epoch)
        ):
            self.failure = errors.SessionLost.of(self.id)
        if self.failure is not None:
            raise self.failure
        if self.is_loaded:
            return
        opened = self._store.open(self.id)
        if opened is not None:
            self.epoch = opened.epoch
            self.created_at = opened.settings.created_at
            self.ttl = opened.settings.ttl
            self.records.load(opened.records, opened.settings.quota)
            self.is_new = False
        self.is_loaded = True

    def make_durable(self, ttl: float, quota: Quota) -> None:
        """Write all of it to the store, with these settings, and from now on each change.

        Raises NotAllowed in a worker without a store, SessionLost, StoreFailed.
        """
        if self._store is None:
            raise errors.NotAllowed("this worker keeps no sessions: start it with --store")
        settings = Settings(self.created_at, ttl, quota)
        with self._noting():
            self.epoch = self._store.create(self.id, settings, self.records.all())
        self.records.stored()
        self.ttl, self.records.quota = ttl, quota

    def configure(self, ttl: float, quota: Quota) -> None:
        """Another time to live (seconds) and quota. Raises SessionLost, StoreFailed."""
        is_same = (self.ttl, self.records.quota) == (ttl, quota)
        if self._store is not None and self.is_durable and not is_same:
            with self._noting():
                settings = Settings(self.created_at, ttl, quota)
                self._store.configure(self.id, self.epoch, settings)
        self.ttl, self.records.quota = ttl, quota

    def commit(self) -> None:
        """Have all changes on disk.

        By the call that has the turn. Raises SessionLost, StoreFailed.
        """
        changes = self.records.changes()
        if not changes or self._store is None:
            return
        with self._noting():
            self._store.write(self.id, self.epoch, changes)
        self.records.stored()

    def undo(self) -> None:
        """Take back the changes that are not on disk, of a session that has its place there."""
        if self.records.undo():
            self._state = None

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Once it is another worker's, calls that have this session still are told; those to come
        open it again."""
        try:
            yield
        except errors.SessionLost as error:
            self.failure = error
            raise


class Sessions:
    """The live sessions by id, made on first use. Only the reading thread changes the table.

    default_id: the session of calls that name none; it neither expires nor gives way to others.
    limit: how many there may be at once; then the one that was not used for longest gives way.
    ttl: seconds that a session lives without a call, unless it has its own. quota: the same.
    store: where durable sessions are; what expires or gives way stays there.
    in_use(): those that have open calls.
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
    ) -> None:
        self.default_id = default_id
        self.limit = limit
        self.ttl = ttl
        self.quota = quota
        self.store = store
        self.expired = 0
        self.evicted = 0
        self._new_state = new_state
        self._in_use = in_use
        self._shared: dict[str, Any] = {}
        self._table: OrderedDict[str, Session] = OrderedDict()  # the last used one at the end
        self._ending: WeakValueDictionary[str, Session] = WeakValueDictionary()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._expiry = Expiry()
        self._has_warned = False
        self._to_come = self._new("")

    def open(self, session_id: str | None) -> Session:
        """The session of that id (None: the default one).

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

    def everyone(self) -> list[Session]:
        """For a change that all sessions are to see: the default one first, all others, and the
        one that stands for those to come."""
        default = self.open(None)
        others = [session for session in self._table.values() if session is not default]
        return [default, *others, self._to_come]

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
        """The same with all of them."""
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
        """The live session of that id, not used by that."""
        session = self._table.get(session_id)
        return None if session is None or self._is_over(session, _Once(self._in_use)) else session

    def why_gone(self, session_id: str) -> str | None:
        """ "expired" or "evicted", where that is known."""
        is_over = session_id in self._table and self.find(session_id) is None
        return "expired" if is_over else self._gone.get(session_id)

    def live(self, limit: int | None = None) -> list[Session]:
        """All of them, or at most so many; the last used one first."""
        in_use = _Once(self._in_use)
        every = list(reversed(self._table.values()))
        return list(islice((one for one in every if not self._is_over(one, in_use)), limit))

    def configure(self, session: Session, ttl: float, quota: Quota, durable: bool) -> None:
        """Another time to live (seconds) and quota; durable: and a place in the store, if it has
        none yet. Raises NotAllowed, SessionLost, StoreFailed; then nothing is changed."""
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
        return Session(session_id, self._new_state, self._shared, self.ttl, self.quota, self.store)

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
        self._wait_for(self._to_come, session)
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
        """It is out of the table already."""
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
        """The next turn in `session` comes when those in `other` are over."""

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


class Expiry:
    """Finds sessions whose time may be over, at a cost that does not grow with their number.

    Each stands in the slot of a second. A call in the session does not move it: when its slot is
    due, it is looked at, and goes into a later one if it was used meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[int, set[str]] = {}
        self._seconds: list[int] = []
        self._due: list[str] = []

    def add(self, session: Session, since: float) -> None:
        """Look at it when its time to live is over, counted from `since`."""
        second = math.ceil(since + session.ttl)
        with self._lock:
            self._leave_slot(session)
            session.slot = second
            ids = self._slots.get(second)
            if ids is None:
                ids = self._slots[second] = set()
                heapq.heappush(self._seconds, second)
            ids.add(session.id)

    def remove(self, session: Session) -> None:
        """Look at it no more."""
        with self._lock:
            self._leave_slot(session)

    def due(self, now: float, most: int) -> Iterator[str]:
        """Up to `most` ids of sessions to be looked at by now."""
        if not self._due and not (self._seconds and self._seconds[0] <= now):
            return
        with self._lock:
            while len(self._due) < most and self._seconds and self._seconds[0] <= now:
                self._due += self._slots.pop(heapq.heappop(self._seconds))
        for _ in range(min(most, len(self._due))):
            yield self._due.pop()

    def _leave_slot(self, session: Session) -> None:
        self._slots.get(session.slot, _EMPTY).discard(session.id)


_EMPTY: set[str] = set()


def _check_id(session_id: str) -> None:
    if not 0 < len(session_id) <= LONGEST_ID:
        raise errors.InvalidArgs(
            f"a session id has 1 to {LONGEST_ID} characters, not {len(session_id)}",
            path="session_id",
        )
