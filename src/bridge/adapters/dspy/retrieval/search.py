"""Searches an index of the session for texts: for the command, for tools of agents, and for stages of pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapters.dspy.retrieval.embedders import embedder_for
from bridge.adapters.dspy.retrieval.stored import visible_index
from bridge.adapters.dspy.retrieval.vectors import matrix_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bridge._dispatch import Context
    from bridge.adapters.dspy.retrieval.index import Index

Found = tuple[list[int], list[float]]  # positions and scores, the best first


def find_index(index_id: str, context: Context, path: str = "args.index_id") -> Index:
    """Return the session's index of that id, or else the default session's. Raises InvalidArgs."""
    index = visible_index(index_id, context)
    if index is None:
        raise errors.InvalidArgs(f"{path}: there is no index {index_id[:100]!r}", path=path)
    return index


def search(context: Context, index_id: str, query: str, k: int, path: str = "args.index_id") -> list[str]:
    """Return the k texts of an index that are most similar to `query`, the best first.

    path: of the index's id, for errors. Raises InvalidArgs for an unknown index and for one without an embedder,
    LMError and CallEnded.
    """
    index = find_index(index_id, context, path)
    ((positions, _),) = search_texts(index, [query], k, context, path)
    return [index.texts[position] for position in positions]


def search_texts(index: Index, queries: Sequence[str], k: int, context: Context, path: str) -> list[Found]:
    """Return what is found for each query. path: of the queries."""
    if index.embedder is None:
        raise errors.InvalidArgs(
            f"{path}: the index was created from vectors without an embedder, so it finds vectors only", path=path
        )
    embed = embedder_for(index.embedder or None, context, path)
    return search_vectors(index, embed(queries), k, context, path)


def search_vectors(index: Index, queries: Any, k: int, context: Context, path: str) -> list[Found]:
    """Return what is found for each row of the matrix `queries`. path: of the queries."""
    check_dimensions(queries, index.dimensions, path)
    found = []
    for each in index.search(queries, k):
        context.check()
        found.append(each)
    return found


def check_dimensions(vectors: Any, wanted: int, path: str) -> None:
    """Raise InvalidArgs for vectors that do not have `wanted` numbers."""
    if vectors.shape[1] != wanted:
        raise errors.InvalidArgs(
            f"{path}: vectors of {vectors.shape[1]} numbers; those of the index have {wanted}", path=path
        )


def given_vectors(value: Any, path: str, context: Context, *, rank: int = 2) -> Any:
    """Return vectors that are in the args of a call as a matrix. Raises InvalidArgs."""
    return matrix_of(value, path, context.buffers, rank=rank)
