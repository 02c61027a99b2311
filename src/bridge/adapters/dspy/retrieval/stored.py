"""The indexes and embedders of a session, stored as its records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from bridge.adapters.dspy.retrieval.index import Index
from bridge.adapters.dspy.retrieval.settings import Embedder, EmbedderSettings
from bridge.records import Records

if TYPE_CHECKING:
    from bridge._dispatch import Context

_settings = msgspec.msgpack.Decoder(EmbedderSettings).decode  # created at import: see codec.Format


class Retrieval:
    """What a session stores for retrieval. Indexes are decoded when they are first needed."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._indexes: dict[str, tuple[bytes, Index]] = {}

    @property
    def index_ids(self) -> list[str]:
        """Return the ids of all indexes, oldest first."""
        return list(self._records.of("index"))

    def index(self, index_id: str) -> Index | None:
        """Return the index of that id, or None."""
        encoded = self._records.of("index").get(index_id)
        if encoded is None:
            return None
        known = self._indexes.get(index_id)
        if known is None or known[0] is not encoded:  # another call has replaced it
            known = self._indexes[index_id] = (encoded, Index.decode(encoded))
        return known[1]

    def size(self, index_id: str) -> int:
        """Return the size of an index in bytes."""
        return len(self._records.of("index")[index_id])

    def set_index(self, index_id: str, encoded: bytes) -> None:
        """Add an index, or replace the one with its id. Raises QuotaExceeded."""
        self._records.put("index", index_id, encoded)

    def remove_index(self, index_id: str) -> None:
        """Remove an index."""
        self._records.remove("index", index_id)
        self._indexes.pop(index_id, None)

    def embedder(self, name: str) -> Embedder | None:
        """Return the session's embedder of that name, or None. The one that was configured without a name is ""."""
        encoded = self._records.of("embedder").get(name)
        if encoded is None:
            return None
        embedder: Embedder | None = self._records.private("embedder", name)
        return embedder or Embedder(_settings(encoded), None)

    def set_embedder(self, name: str, embedder: Embedder) -> None:
        """Set an embedder. Raises QuotaExceeded."""
        self._records.put("embedder", name, msgspec.msgpack.encode(embedder.settings), embedder)


def visible_index(index_id: str, context: Context) -> Index | None:
    """Return the session's index of that id, or else the default session's, or None."""
    index: Index | None = context.session.state.retrieval.index(index_id)
    inherited: Any = context.session.inherited
    return inherited.retrieval.index(index_id) if index is None and inherited is not None else index
