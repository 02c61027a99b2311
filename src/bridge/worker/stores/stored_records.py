"""The records of a stored session, read while another worker may own it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from bridge import errors
from bridge.records import Quota, Records

if TYPE_CHECKING:
    from bridge.worker.stores.protocol import Store


class StoredRecords(Records):
    """Reads the records of a session from its store, each when it is needed. They cannot be changed."""

    __slots__ = ("_session_id", "_store")

    def __init__(self, session_id: str, store: Store) -> None:
        super().__init__(Quota())
        self._session_id = session_id
        self._store = store

    def of(self, kind: str) -> Mapping[str, bytes]:
        """Return the values of that kind by name. Reading them raises StoreFailed if the store fails."""
        return _StoredValues(self._session_id, kind, self._store)

    def put_all(self, kind: str, values: Mapping[str, bytes]) -> None:
        """Raise NotAllowed."""
        raise errors.NotAllowed(f"session {self._session_id!r} is read-only here")

    def remove(self, kind: str, name: str) -> None:
        """Raise NotAllowed."""
        self.put_all(kind, {})


class _StoredValues(Mapping[str, bytes]):
    __slots__ = ("_kind", "_session_id", "_store")

    def __init__(self, session_id: str, kind: str, store: Store) -> None:
        self._session_id = session_id
        self._kind = kind
        self._store = store

    def __getitem__(self, name: str) -> bytes:
        value = self._store.value(self._session_id, self._kind, name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.names(self._session_id, self._kind))

    def __len__(self) -> int:
        return len(self._store.names(self._session_id, self._kind))
