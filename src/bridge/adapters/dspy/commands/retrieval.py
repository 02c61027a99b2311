"""The commands that make vectors of texts, and that create, search and delete indexes of texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from bridge import errors
from bridge._dispatch import timestamp
from bridge.adapters.dspy.commands import adapter

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.retrieval.stored import Retrieval

MOST_RESULTS = 10_000
MOST_TEXTS = 1_000_000

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
Texts = Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST_TEXTS)]


class CreateIndexArgs(msgspec.Struct):
    """The args of create_index.

    vectors: a matrix of floats or a list of lists, with a row for each text; missing: the embedder makes them.
    embedder: what makes vectors of texts and of queries: a configured one, "offline" or host/NAME; missing: the default
    one, or none if vectors are given. metric: how similar two vectors are. if_exists: what to do if the session has an
    index of this id: fail ("error"), keep it unchanged ("keep"), or replace it ("replace").
    """

    index_id: Name
    texts: Texts
    vectors: Any = None
    embedder: str | None = None
    metric: Literal["cosine", "dot"] = "cosine"
    if_exists: Literal["error", "keep", "replace"] = "error"
    session_id: str | None = None


@adapter.command("create_index", CreateIndexArgs, lane="session")
def create_index(args: CreateIndexArgs, context: Context) -> dict[str, Any]:
    """Create an index of texts by their vectors."""
    from bridge.adapters.dspy.retrieval.index import encode, rows_of

    retrieval: Retrieval = context.session.state.retrieval
    if _is_kept(args, context):
        return {"status": "exists", **_described(args.index_id, retrieval)}
    embedder = args.embedder if args.vectors is not None else args.embedder or ""
    vectors = _vectors_of(args.texts, args.vectors, embedder, context)
    retrieval = context.session.state.retrieval
    if _is_kept(args, context):  # another call may have created it meanwhile
        return {"status": "exists", **_described(args.index_id, retrieval)}
    existed = retrieval.index(args.index_id) is not None
    rows = rows_of(vectors, args.metric)
    retrieval.set_index(args.index_id, encode(args.texts, rows, args.metric, embedder, timestamp()))
    return {"status": "replaced" if existed else "created", **_described(args.index_id, retrieval)}


class AddArgs(msgspec.Struct):
    """The args of add_to_index. vectors: as in create_index; missing: the embedder of the index makes them."""

    index_id: Name
    texts: Texts
    vectors: Any = None
    session_id: str | None = None


@adapter.command("add_to_index", AddArgs, lane="session")
def add_to_index(args: AddArgs, context: Context) -> dict[str, Any]:
    """Add texts to an index of the session."""
    import numpy as np

    from bridge.adapters.dspy.retrieval.index import encode, rows_of
    from bridge.adapters.dspy.retrieval.search import check_dimensions

    index = _own_index(args.index_id, context)
    if args.vectors is None and index.embedder is None:
        raise errors.InvalidArgs(
            "args.vectors: required, because the index was created from vectors without an embedder",
            path="args.vectors",
        )
    vectors = _vectors_of(args.texts, args.vectors, index.embedder, context)
    index = _own_index(args.index_id, context)  # another call may have changed it meanwhile
    check_dimensions(vectors, index.dimensions, "args.vectors")
    rows = np.concatenate([index.matrix, rows_of(vectors, index.metric)])
    texts = [*index.texts, *args.texts]
    retrieval: Retrieval = context.session.state.retrieval
    retrieval.set_index(args.index_id, encode(texts, rows, index.metric, index.embedder, index.created_at))
    return {"status": "added", **_described(args.index_id, retrieval)}


class SearchArgs(msgspec.Struct):
    """The args of search_index.

    query: a text, queries: texts, vector: numbers, vectors: a matrix or a list of lists; one of the four. k: how many
    texts are returned for each. tensors: return positions and scores as arrays, without the texts.
    """

    index_id: str
    query: str | None = None
    queries: Texts | None = None
    vector: Any = None
    vectors: Any = None
    k: Annotated[int, msgspec.Meta(ge=1, le=MOST_RESULTS)] = 5
    tensors: bool = False
    session_id: str | None = None


@adapter.command("search_index", SearchArgs, idempotent=True)
def search_index(args: SearchArgs, context: Context) -> dict[str, Any]:
    """Return the texts of an index that are most similar to a text or a vector."""
    from bridge.adapters.dspy.retrieval.search import find_index, given_vectors, search_texts, search_vectors

    given = [name for name in ("query", "queries", "vector", "vectors") if getattr(args, name) is not None]
    if len(given) != 1:
        raise errors.InvalidArgs(
            f"args: expected one of query, queries, vector and vectors, not {' and '.join(given) or 'none of them'}",
            path="args",
        )
    (name,) = given
    index, path = find_index(args.index_id, context), f"args.{name}"
    is_single = name in ("query", "vector")
    if name in ("query", "queries"):
        queries = [args.query] if args.query is not None else args.queries
        found = search_texts(index, queries or [], args.k, context, path)
    else:
        vectors = given_vectors(getattr(args, name), path, context, rank=1 if is_single else 2)
        found = search_vectors(index, vectors, args.k, context, path)
    result: dict[str, Any] = {
        "indices": [positions for positions, _ in found],
        "scores": [scores for _, scores in found],
    }
    if args.tensors:
        import numpy as np

        types = {"indices": np.int64, "scores": np.float32}
        result = {key: np.array(rows, types[key]).reshape(len(found), -1) for key, rows in result.items()}
    else:
        result["passages"] = [[index.texts[position] for position in positions] for positions, _ in found]
    return {key: rows[0] for key, rows in result.items()} if is_single else result


class IndexArgs(msgspec.Struct):
    """The args of a command on one index."""

    index_id: str
    session_id: str | None = None


@adapter.command("delete_index", IndexArgs, lane="session")
def delete_index(args: IndexArgs, context: Context) -> dict[str, Any]:
    """Delete an index of the session."""
    _own_index(args.index_id, context)
    context.session.state.retrieval.remove_index(args.index_id)
    return {"index_id": args.index_id, "status": "deleted"}


class ListIndexesArgs(msgspec.Struct):
    """The args of list_indexes."""

    session_id: str | None = None


@adapter.command("list_indexes", ListIndexesArgs, idempotent=True)
def list_indexes(args: ListIndexesArgs, context: Context) -> dict[str, Any]:
    """List the session's indexes, the oldest first, and the ids of those it inherits from the default session."""
    retrieval: Retrieval = context.session.state.retrieval
    ids = retrieval.index_ids
    result: dict[str, Any] = {"indexes": [_described(index_id, retrieval) for index_id in ids]}
    inherited = context.session.inherited
    if inherited is not None:
        result["inherited"] = [index_id for index_id in inherited.retrieval.index_ids if index_id not in ids]
    return result


class EmbedArgs(msgspec.Struct):
    """The args of embed. embedder: a configured one, "offline" or host/NAME; missing: the default one."""

    texts: Texts
    embedder: str | None = None
    session_id: str | None = None


@adapter.command("embed", EmbedArgs, idempotent=True)
def embed(args: EmbedArgs, context: Context) -> dict[str, Any]:
    """Return a vector for each text, as an array of 32-bit floats."""
    from bridge.adapters.dspy.retrieval.embedders import embedder_for

    return {"vectors": embedder_for(args.embedder, context)(args.texts)}


def _own_index(index_id: str, context: Context) -> Any:
    """Return the session's own index of that id. Raises InvalidArgs."""
    from bridge.adapters.dspy.retrieval.search import find_index

    index = context.session.state.retrieval.index(index_id)
    if index is None:
        find_index(index_id, context)  # raises if there is none
        raise errors.InvalidArgs(
            f"args.index_id: {index_id[:100]!r} is an index of the default session, changed without a session_id",
            path="args.index_id",
        )
    return index


def _is_kept(args: CreateIndexArgs, context: Context) -> bool:
    """Return whether the session has an index of this id that is to be kept. Raises InvalidArgs."""
    if context.session.state.retrieval.index(args.index_id) is None or args.if_exists == "replace":
        return False
    if args.if_exists == "error":
        raise errors.InvalidArgs(
            f"args.index_id: the session already has an index {args.index_id!r}", path="args.index_id", exists=True
        )
    return True


def _vectors_of(texts: list[str], given: Any, embedder: str | None, context: Context) -> Any:
    """Return a matrix with a row for each text. Later calls of the session may run while an embedder makes it."""
    from bridge.adapters.dspy.retrieval.embedders import embedder_for
    from bridge.adapters.dspy.retrieval.search import given_vectors

    embed = None if embedder is None else embedder_for(embedder or None, context)
    if given is not None:
        vectors = given_vectors(given, "args.vectors", context)
        if len(vectors) != len(texts):
            raise errors.InvalidArgs(
                f"args.vectors: {len(vectors)} vectors for {len(texts)} texts", path="args.vectors"
            )
        return vectors
    assert embed is not None
    context.release()
    vectors = embed(texts)
    context.take_turn()
    return vectors


def _described(index_id: str, retrieval: Retrieval) -> dict[str, Any]:
    index = retrieval.index(index_id)
    assert index is not None
    return {
        "index_id": index_id,
        "texts": len(index.texts),
        "dimensions": index.dimensions,
        "metric": index.metric,
        "embedder": "default" if index.embedder == "" else index.embedder,
        "bytes": retrieval.size(index_id),
        "created_at": index.created_at,
    }
