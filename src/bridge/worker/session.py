"""A session: what a host's user is to the worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge._dispatch import timestamp
from bridge._histogram import Recorder
from bridge.records import Quota, Records, Settings
from bridge.worker.order import Order

if TYPE_CHECKING:
    from bridge.worker.stores.sqlite import Store

_making = threading.Lock()


class Session:
    """records: what it keeps, for the store and the quota. state: what the adapter makes of them.
    order: its calls'. ttl: seconds. epoch: that it was opened with in the store; 0: it is not
    durable. recorder: what is counted of its calls.

    is_new: no call has ended in it yet, and no store had it.
    """

    __slots__ = (
        "__weakref__",
        "_inherited",
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
        "slot",
        "ttl",
        "used",
    )

    def __init__(
        self,
        session_id: str,
        new_state: Callable[[Records], Any],
        ttl: float,
        quota: Quota,
        store: Store | None,
        inherited: Callable[[], Any],
    ) -> None:
        self.id = session_id
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
        self._inherited = inherited
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
    def inherited(self) -> Any:
        """The default session's state, to be read only; None in the default session itself.

        It is as of now: another thread may be changing it. Raises StoreFailed.
        """
        return self._inherited()

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
        if self.is_durable and self.failure is None and not self._store.is_owner(self.id, self.epoch):
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
        """Change the time to live (seconds) and the quota. Raises SessionLost, StoreFailed."""
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
        """Note where the session is another worker's: calls that have it still get SessionLost,
        those to come open it again."""
        try:
            yield
        except errors.SessionLost as error:
            self.failure = error
            raise
