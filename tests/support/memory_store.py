"""A store in memory, the smallest implementation of the protocol of stores."""

from __future__ import annotations

import threading

from bridge import errors
from bridge.records import Changes, SessionSettings
from bridge.worker.stores.protocol import OnTaken, StoredSession, TakenSession

SHARED: dict[str, MemoryStore] = {}


def open_store(location: str) -> MemoryStore:
    """Return the store of that name: all workers of this process share it."""
    return SHARED.setdefault(location, MemoryStore())


class MemoryStore:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_epoch = 0
        self._sessions: dict[str, TakenSession] = {}
        self._watchers: list[OnTaken] = []

    def create(self, session_id: str, settings: SessionSettings, records: Changes) -> int:
        with self._lock:
            if session_id in self._sessions:
                raise errors.SessionLost.of(session_id)
            return self._own(session_id, settings, dict(records)).epoch

    def take(self, session_id: str) -> TakenSession | None:
        with self._lock:
            stored = self._sessions.get(session_id)
            if stored is None:
                return None
            taken = self._own(session_id, stored.settings, stored.records)
            for on_taken in self._watchers:
                on_taken(session_id, taken.epoch)
            return TakenSession(taken.epoch, taken.settings, dict(taken.records))

    def is_owner(self, session_id: str, epoch: int) -> bool:
        stored = self._sessions.get(session_id)
        return stored is not None and stored.epoch == epoch

    def write(self, session_id: str, epoch: int, changes: Changes, settings: SessionSettings | None = None) -> None:
        with self._lock:
            if not self.is_owner(session_id, epoch):
                raise errors.SessionLost.of(session_id)
            before = self._sessions[session_id]
            merged = {key: value for key, value in (before.records | changes).items() if value is not None}
            self._sessions[session_id] = TakenSession(epoch, settings or before.settings, merged)

    def drop(self, session_id: str, counted: str | None) -> int:
        with self._lock:
            stored = self.find(session_id, counted)
            self._sessions.pop(session_id, None)
            return 0 if stored is None else stored.counted_records

    def find(self, session_id: str, counted: str | None) -> StoredSession | None:
        stored = self._sessions.get(session_id)
        if stored is None:
            return None
        count = sum(kind == counted for kind, _ in stored.records)
        size = sum(len(name.encode()) + len(value or b"") for (_, name), value in stored.records.items())
        settings = stored.settings
        return StoredSession(session_id, stored.epoch, settings.created_at, settings.ttl, count, size)

    def list_sessions(self, limit: int, counted: str | None) -> tuple[list[StoredSession], int]:
        found = [self.find(session_id, counted) for session_id in sorted(self._sessions)]
        return [each for each in found if each is not None][:limit], len(found)

    def names(self, session_id: str, kind: str) -> list[str]:
        stored = self._sessions.get(session_id)
        return [] if stored is None else [name for each, name in stored.records if each == kind]

    def value(self, session_id: str, kind: str, name: str) -> bytes | None:
        stored = self._sessions.get(session_id)
        return None if stored is None else stored.records.get((kind, name))

    def watch(self, on_taken: OnTaken) -> None:
        self._watchers.append(on_taken)

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _own(self, session_id: str, settings: SessionSettings, records: Changes) -> TakenSession:
        self._last_epoch += 1
        owned = self._sessions[session_id] = TakenSession(self._last_epoch, settings, records)
        return owned
