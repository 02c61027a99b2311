"""An index: texts with their vectors, and the search for those that are most similar to a vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from bridge import errors
from bridge.adapters.dspy.retrieval.vectors import unit_rows

Metric = Literal["cosine", "dot"]

MOST_TEXTS = 1_000_000
LARGEST = 1 << 30  # bytes; SQLite stores no longer values
_ALIGNMENT = 64  # bytes, of the matrix in an encoded index
_MANY = 8  # queries, for which a product of matrices takes less CPU time: it starts threads that wait in a loop
_SCORES_AT_ONCE = 1 << 24  # 64 MiB
# By how much scores of products of matrices, which add in another order, may differ from the exact ones: relative to
# the largest possible score.
_TOLERANCE = 1e-5


class _Head(msgspec.Struct):
    """What an encoded index has besides its vectors."""

    texts: list[str]
    dimensions: int
    metric: Metric
    embedder: str | None
    created_at: str


_head = msgspec.msgpack.Decoder(_Head).decode  # created at import: see codec.Format


class Index:
    """Texts and their vectors. Never changed, so usable from any number of threads.

    matrix: a row for each text, of length 1 for the metric cosine. embedder: the name of what makes vectors of queries;
    "": the one that was configured without a name; None: queries are vectors.
    """

    def __init__(self, head: _Head, matrix: Any) -> None:
        self.texts = head.texts
        self.matrix = matrix
        self.metric = head.metric
        self.embedder = head.embedder
        self.created_at = head.created_at
        self._longest = 1.0 if self.metric == "cosine" else float(np.linalg.norm(matrix, axis=1).max())

    @property
    def dimensions(self) -> int:
        return int(self.matrix.shape[1])

    @classmethod
    def decode(cls, encoded: bytes) -> Index:
        """Return the index that `encode` has encoded. Its matrix is a view of `encoded`."""
        size = int.from_bytes(encoded[:8], "little")
        head = _head(memoryview(encoded)[8 : 8 + size])
        matrix = np.frombuffer(encoded, "<f4", offset=_padded(8 + size)).reshape(-1, head.dimensions)
        return cls(head, matrix)

    def search(self, queries: Any, k: int) -> Iterator[tuple[list[int], list[float]]]:
        """Yield for each query, a row of the matrix `queries`, the positions and scores of the k best texts.

        The best comes first, and the earlier one of two with equal scores. The scores are those that DSPy computes.
        """
        queries = rows_of(queries, self.metric)
        k = min(k, len(self.texts))
        at_once = max(1, _SCORES_AT_ONCE // len(self.texts))
        for first in range(0, len(queries), at_once):
            some = queries[first : first + at_once]
            for query, scores in zip(some, self._scores(some), strict=True):
                yield self._best(query, scores, k)

    def _scores(self, queries: Any) -> Any:
        if len(queries) >= _MANY:
            return queries @ self.matrix.T
        return np.einsum("qd,kd->qk", queries, self.matrix, order="C")

    def _best(self, query: Any, scores: Any, k: int) -> tuple[list[int], list[float]]:
        """Return the k best of the texts. scores: of all, exact up to the tolerance."""
        tolerance = _TOLERANCE * self._longest * float(np.linalg.norm(query))
        near = np.flatnonzero(scores >= np.partition(scores, -k)[-k] - 2 * tolerance)
        exact = np.einsum("qd,kd->qk", query[None], self.matrix[near], order="C")[0]
        order = np.argsort(-exact, kind="stable")[:k]
        return near[order].tolist(), exact[order].tolist()


def rows_of(vectors: Any, metric: Metric) -> Any:
    """Return vectors as the rows of an index."""
    return unit_rows(vectors) if metric == "cosine" else vectors


def encode(
    texts: Sequence[str], rows: Any, metric: Metric, embedder: str | None, created_at: str, path: str = "args.texts"
) -> bytes:
    """Return an index as a session's records hold it. rows: of the matrix, one for each text, from `rows_of`.

    Raises InvalidArgs for texts that are not valid Unicode and for an index that is too large. path: of the texts.
    """
    head = _Head(list(texts), int(rows.shape[1]), metric, embedder, created_at)
    try:
        encoded = msgspec.msgpack.encode(head)
    except UnicodeEncodeError:
        raise errors.InvalidArgs(f"{path}: a text that is not valid Unicode", path=path) from None
    size = _padded(8 + len(encoded)) + rows.nbytes
    if size > LARGEST:
        raise errors.InvalidArgs(f"{path}: the index would have {size} bytes; the limit is {LARGEST}", path=path)
    padding = bytes(_padded(8 + len(encoded)) - 8 - len(encoded))
    return b"".join((len(encoded).to_bytes(8, "little"), encoded, padding, np.ascontiguousarray(rows, "<f4").data))


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
