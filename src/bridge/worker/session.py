"""A session: the state of one user of a host."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge._dispatch import timestamp
from bridge._histogram import Recorder
from bridge.records import Quota, Records, SessionSettings
from bridge.worker.order import Order

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapter import Handler
    from bridge.worker.stores.protocol import Store

_making_state = threading.Lock()


class Session:
    """Represents a session in this worker.

    records: what is stored and limited by the quota. state: the adapter's own object, made from the records.
    order: the order of its calls. recorder: their statistics.
    ttl: seconds without a call after which it expires. used: when it was last used, by time.monotonic().
    slot: the second in which `Expiry` checks it.
    epoch: the one under which this worker owns it in the store; 0: it is not durable.
    failure: the error of its calls once this worker must not use its copy any more, since another one has taken the
    session, or since it is not known what the store has. Later calls load the session anew.
    is_new: whether no call has ended in it yet and it was not in the store.
    has_ended: whether later calls get a new session of its name.
    """

    __slots__ = (
        "__weakref__",
        "_inherited",
        "_is_unchecked",
        "_new_state",
        "_state",
        "_store",
        "created_at",
        "epoch",
        "failure",
        "has_ended",
        "id",
        "is_loaded",
        "is_new",
        "order",
        "recorder",
        "records",
        "slot",
        "ttl",
        "used",
    )

    def __init__(
        self,
        session_id: str,
        records: Records,
        new_state: Callable[[Records], Any],
        ttl: float,
        store: Store | None,
        inherited: Callable[[], Any],
    ) -> None:
        self.id = session_id
        self.records = records
        self.order = Order()
        self.recorder = Recorder()
        self.ttl = ttl
        self.created_at = timestamp()
        self.used = 0.0
        self.slot = 0
        self.epoch = 0
        self.failure: errors.SessionLost | None = None
        self.is_new = True
        self.has_ended = False
        self.is_loaded = store is None
        self._is_unchecked = False
        self._store = store
        self._inherited = inherited
        self._new_state = new_state
        self._state: Any = None

    @property
    def state(self) -> Any:
        """Return the adapter's state of the session; made when it is first needed."""
        if self._state is None:
            with _making_state:
                if self._state is None:
                    self._state = self._new_state(self.records)
        return self._state

    @property
    def inherited(self) -> Any:
        """Return the default session's state, to be read only; None in the default session itself.

        Another thread may change it meanwhile. Raises StoreFailed.
        """
        return self._inherited()

    @property
    def is_durable(self) -> bool:
        """Return whether the session is in the store."""
        return self.epoch != 0

    @property
    def idle(self) -> float:
        """Return the seconds, rounded to ms, since its last call ended or, if that call is open, arrived."""
        return round(max(0.0, time.monotonic() - self.used), 3)

    @property
    def is_late(self) -> bool:
        """Return whether its time to live is over. A session with open calls does not expire even then."""
        return time.monotonic() - self.used >= self.ttl

    def touch(self) -> None:
        """Note that a call of the session ends: its time without a call begins now."""
        self.used = time.monotonic()
        self.is_new = False

    def load(self, *, check: bool = True) -> None:
        """Load the session from the store if it is not loaded yet. Only the call that has its turn may do that.

        check: find out now whether another worker has taken the session; otherwise `commit` or `confirm` does.
        Raises SessionLost if one has, StoreFailed.
        """
        self._is_unchecked = self.is_durable
        if self.failure is not None:
            raise self.failure
        if self._store is None:
            return
        if self.is_loaded:
            if check:
                self.confirm()
            return
        taken = self._store.take(self.id)
        if taken is not None:
            self.epoch = taken.epoch
            self.created_at = taken.settings.created_at
            self.ttl = taken.settings.ttl
            self.records.load(taken.records, taken.settings.quota)
            self.is_new = False
        self.is_loaded = True

    def make_durable(self, ttl: float, quota: Quota) -> None:
        """Write the session to the store with these settings. From then on `commit` writes its changes.

        Raises NotAllowed in a worker without a store, SessionLost, StoreFailed.
        """
        if self._store is None:
            raise errors.NotAllowed("this worker has no store for durable sessions; start it with --store")
        settings = SessionSettings(self.created_at, ttl, quota)
        with self._noting_loss():
            self.epoch = self._store.create(self.id, settings, self.records.all())
        self.records.mark_stored()
        self.ttl, self.records.quota = ttl, quota

    def configure(self, ttl: float, quota: Quota) -> None:
        """Set the time to live (seconds) and the quota. Raises SessionLost, StoreFailed."""
        is_same = (self.ttl, self.records.quota) == (ttl, quota)
        if self._store is not None and self.is_durable and not is_same:
            with self._noting_loss():
                self._store.write(self.id, self.epoch, {}, SessionSettings(self.created_at, ttl, quota))
        self.ttl, self.records.quota = ttl, quota

    def commit(self) -> None:
        """Write all changes of a durable session to the store. Only the call that has its turn may do that.

        Raises SessionLost if another worker has taken the session, also if there are no changes, StoreFailed.
        """
        changes = self.records.changes()
        if not changes or self._store is None:
            self.confirm()
            return
        with self._noting_loss():
            self._store.write(self.id, self.epoch, changes)
        self.records.mark_stored()

    def confirm(self) -> None:
        """Find out whether another worker has taken the session, unless the store has told the present call already.

        Raises SessionLost if one has, StoreFailed.
        """
        if not self._is_unchecked or self._store is None:
            return
        if self.failure is None and not self._store.is_owner(self.id, self.epoch):
            self.failure = errors.SessionLost.of(self.id)
        if self.failure is not None:
            raise self.failure
        self._is_unchecked = False

    def undo(self) -> None:
        """Revert the changes of a durable session that are not in the store."""
        if self.records.undo():
            self._state = None

    @contextmanager
    def _noting_loss(self) -> Iterator[None]:
        """Note if this copy of the session is of no use: its present calls get SessionLost, later ones load it anew."""
        try:
            yield
            self._is_unchecked = False
        except errors.SessionLost as error:
            self.failure = error
            raise
        except errors.OutcomeUnknown:
            if self.is_durable:  # otherwise the copy is all that there is for certain
                self.failure = errors.SessionLost(
                    f"the store became unreachable during the last change of session {self.id!r}; it is loaded again"
                )
            raise


def in_transaction(handler: Handler, args: Any, context: Context) -> Any:
    """Run a handler that changes its session. Commit the changes if it returns, undo them if it raises.

    Neither happens if its turn is over by then: `release` has committed, or the call has been ended. Raises SessionLost
    in place of the handler's error if another worker has taken the session: the handler has seen what it had before.
    The errors of the store itself say nothing of what it had.
    """
    session: Session = context.session
    try:
        result = handler(args, context)
        if context.has_turn:
            session.commit()
    except BaseException as error:
        if context.has_turn:
            session.undo()
            if isinstance(error, Exception) and not isinstance(error, (errors.SessionLost, errors.StoreFailed)):
                session.confirm()
        raise
    return result
