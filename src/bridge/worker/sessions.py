"""Sessions: what a host's user is to the worker."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from bridge import errors
from bridge._dispatch import timestamp
from bridge._histogram import Recorder
from bridge.records import Quota, Records
from bridge.telemetry import warn
from bridge.worker.lanes import Order

if TYPE_CHECKING:
    from bridge.worker.store import Settings, Store

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
    was: why there is nothing left of an earlier session of that id: "expired" or "evicted".
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
        "was",
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
        self.was: str | None = None
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
            self.was = None
        self.is_loaded = True

    def make_durable(self) -> None:
        """Write all of it to the store, and from now on each change.

        Raises NotAllowed in a worker without a store, SessionLost, StoreFailed.
        """
        if self.is_durable:
            return
        if self._store is None:
            raise errors.NotAllowed("this worker keeps no sessions: start it with --store")
        self.epoch = self._store.create(self.id, self._settings(), self.records.all())
        self.records.stored()

    def configure(self, ttl: float, quota: Quota) -> None:
        """Another time to live (seconds) and quota. Raises SessionLost, StoreFailed."""
        before = self.ttl, self.records.quota
        self.ttl, self.records.quota = ttl, quota
        if self._store is not None and self.is_durable and before != (ttl, quota):
            try:
                self._store.configure(self.id, self.epoch, self._settings())
            except errors.BridgeError as error:
                self.ttl, self.records.quota = before
                self._note(error)
                raise

    def commit(self) -> None:
        """Have all changes on disk. Where that fails they are taken back.

        By the call that has the turn. Raises SessionLost, StoreFailed.
        """
        changes = self.records.changes()
        if not changes or self._store is None:
            return
        try:
            self._store.write(self.id, self.epoch, changes)
        except errors.BridgeError as error:
            self.undo()
            self._note(error)
            raise
        self.records.stored()

    def undo(self) -> None:
        """Take back the changes that are not on disk, of a session that has its place there."""
        if self.records.undo():
            self._state = None

    def _note(self, error: errors.BridgeError) -> None:
        if isinstance(error, errors.SessionLost):
            self.failure = error

    def _settings(self) -> Settings:
        from bridge.worker.store import Settings

        return Settings(self.created_at, self.ttl, self.records.quota)


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
        now = time.monotonic()
        for each in self._expiry.due(now, AT_ONCE):
            self._expire(each, now)
        session = self._table.get(session_id)
        if session is not None and not self._is_over(session, now):
            self._table.move_to_end(session_id)
        else:
            session = self._add(session_id, now)
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
        self._note_ending(session)
        return [session]

    def detach_all(self) -> list[Session]:
        """The same with all of them."""
        detached = list(self._table.values())
        self._table.clear()
        self._gone.clear()
        for session in detached:
            self._note_ending(session)
        return detached

    def find(self, session_id: str) -> Session | None:
        """The live session of that id, not used by that."""
        session = self._table.get(session_id)
        if session is None or self._is_over(session, time.monotonic()):
            return None
        return session

    def why_gone(self, session_id: str) -> str | None:
        """ "expired" or "evicted", where that is known."""
        is_over = session_id in self._table and self.find(session_id) is None
        return "expired" if is_over else self._gone.get(session_id)

    def latest(self, limit: int) -> list[Session]:
        """At most so many of them, the last used one first."""
        return list(islice(reversed(self._table.values()), limit))

    def configure(self, session: Session, ttl: float, quota: Quota) -> None:
        """Another time to live (seconds) and quota. Raises SessionLost, StoreFailed."""
        session.configure(ttl, quota)
        self._expiry.add(session)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def programs(self) -> int:
        """How many programs all sessions hold together."""
        return sum(session.programs for session in list(self._table.values()))

    def _new(self, session_id: str) -> Session:
        return Session(session_id, self._new_state, self._shared, self.ttl, self.quota, self.store)

    def _add(self, session_id: str, now: float) -> Session:
        if session_id not in self._table:
            _check_id(session_id)
            self._make_room()
        before = self._table.pop(session_id, None)
        session = self._new(session_id)
        if before is not None:
            self._drop(before, "expired")
        session.was = self._gone.pop(session_id, None)
        session.used = now
        self._table[session_id] = session
        self._expiry.add(session)
        self._wait_for(self._to_come, session)
        ending = self._ending.get(session_id)
        if ending is not None:
            self._wait_for(ending, session)
        return session

    def _is_over(self, session: Session, now: float) -> bool:
        """Whether calls to come get another one."""
        if session.failure is not None:
            return True
        idle = now - session.used
        return (
            idle >= session.ttl and session.id != self.default_id and session not in self._in_use()
        )

    def _expire(self, session_id: str, now: float) -> None:
        session = self._table.get(session_id)
        if session is None or session.slot > now:
            return
        if self._is_over(session, now):
            del self._table[session_id]
            self._drop(session, "expired")
            return
        if now - session.used >= session.ttl:  # in use
            session.used = now
        self._expiry.add(session)

    def _make_room(self) -> None:
        used = len(self._table) + 1
        if used < WARN_AT * self.limit:
            self._has_warned = False
        elif not self._has_warned:
            self._has_warned = True
            warn(f"{used} sessions of at most {self.limit}; then the least recently used give way")
        if used <= self.limit:
            return
        in_use = self._in_use()
        for _ in range(len(self._table)):
            session_id, session = next(iter(self._table.items()))
            if session not in in_use and session_id != self.default_id:
                del self._table[session_id]
                self._drop(session, "evicted")
                return
            self._table.move_to_end(session_id)
        raise errors.Overloaded(f"all of {self.limit} sessions have open calls", retry_after=1.0)

    def _drop(self, session: Session, why: str) -> None:
        """It is out of the table already."""
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


class Expiry:
    """Finds sessions whose time may be over, at a cost that does not grow with their number.

    Each stands in the slot of a second. A call in the session does not move it: when its slot is
    due, it is looked at, and goes into a later one if it was used meanwhile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._slots: dict[int, list[str]] = {}
        self._seconds: list[int] = []
        self._due: list[str] = []

    def add(self, session: Session) -> None:
        """Look at it when its time to live is over, counted from its last use."""
        second = math.ceil(session.used + session.ttl)
        session.slot = second
        with self._lock:
            ids = self._slots.get(second)
            if ids is None:
                ids = self._slots[second] = []
                heapq.heappush(self._seconds, second)
            ids.append(session.id)

    def due(self, now: float, most: int) -> Iterator[str]:
        """Up to `most` ids of sessions to be looked at by now."""
        if not self._due and not (self._seconds and self._seconds[0] <= now):
            return
        with self._lock:
            while len(self._due) < most and self._seconds and self._seconds[0] <= now:
                self._due += self._slots.pop(heapq.heappop(self._seconds))
        for _ in range(min(most, len(self._due))):
            yield self._due.pop()


def _check_id(session_id: str) -> None:
    if not 0 < len(session_id) <= LONGEST_ID:
        raise errors.InvalidArgs(
            f"a session id has 1 to {LONGEST_ID} characters, not {len(session_id)}",
            path="session_id",
        )
