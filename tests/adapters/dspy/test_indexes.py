"""Indexes of texts by vectors: the results of DSPy's Embeddings, what vectors are accepted, quotas and sessions."""

from __future__ import annotations

import base64

import dspy
import numpy as np
import pytest

from bridge import Client, errors
from bridge.adapters.dspy.retrieval.index import Index, encode, rows_of

TEXTS = [
    "Mozart was born in Salzburg in 1756.",
    "The Louvre is in Paris.",
    "Bees make honey.",
    "Berlin is the capital of Germany.",
]
VECTORS = [[1.0, 0.0], [0.0, 2.0], [-1.0, 0.5], [3.0, 3.0]]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    store = tmp_path_factory.mktemp("store") / "sessions"
    with Client.start(flags=["--store", f"sqlite:{store}"]) as client:
        yield client


@pytest.fixture
def session(client, request):
    """Return a function session(command, **args) that calls a command in a session of its own."""
    return lambda command, **args: client.call(command, args, session_id=request.node.name)


def path_of(caught):
    assert caught.value.details["path"] in str(caught.value)
    return caught.value.details["path"]


@pytest.mark.parametrize("metric", ["cosine", "dot"])
@pytest.mark.parametrize(("count", "size", "k"), [(1, 3, 5), (7, 2, 7), (500, 64, 10), (3000, 384, 5)])
def test_results_are_those_of_dspy(session, metric, count, size, k):
    """The texts, their order and every bit of their scores."""
    random = np.random.default_rng(count)
    vectors, queries = (random.standard_normal((rows, size)).astype(np.float32) for rows in (count, 20))
    texts = [f"text {number}" for number in range(count)]
    reference = dspy.EmbeddingsWithScores(texts, lambda asked: vectors, k=k, normalize=metric == "cosine")
    reference.embedder = lambda asked: queries[[int(each) for each in asked]]
    wanted = reference._batch_forward([str(number) for number in range(len(queries))])
    session("create_index", index_id="i", texts=texts, vectors=vectors, metric=metric)
    found = session("search_index", index_id="i", vectors=queries, k=k)
    assert [*zip(found["passages"], found["indices"], found["scores"], strict=True)] == wanted
    arrays = session("search_index", index_id="i", vectors=queries, k=k, tensors=True)
    assert (arrays["indices"] == found["indices"]).all()
    assert arrays["scores"].dtype == np.float32
    assert (arrays["scores"] == np.array(found["scores"], np.float32)).all()
    one = session("search_index", index_id="i", vector=queries[3], k=k)
    assert [one["passages"], one["indices"], one["scores"]] == [*wanted[3]]


def test_equal_scores(session):
    """Of texts with equal scores, the earlier one comes first, wherever they are."""
    texts = [f"text {number}" for number in range(1000)]
    vectors = np.tile(np.random.default_rng(1).standard_normal(77), (1000, 1))
    session("create_index", index_id="i", texts=texts, vectors=vectors)
    found = session("search_index", index_id="i", vector=vectors[0], k=4)
    assert found["indices"] == [0, 1, 2, 3]
    assert len(set(found["scores"])) == 1


@pytest.mark.parametrize(
    "vectors",
    [
        VECTORS,
        np.array(VECTORS),
        np.array(VECTORS, np.float16),
        np.array(VECTORS, ">f4"),
        np.array(VECTORS, np.float32).T.copy().T,
        [[1, 0], [0, 2], [-1, 0.5], [3, 3]],
        {"$tensor": {"type": "f32", "shape": [4, 2], "data": np.array(VECTORS, "<f4").tobytes()}},
    ],
)
def test_forms_of_vectors(session, vectors):
    """Arrays of floats of any size and layout, and lists of numbers."""
    created = session("create_index", index_id="i", texts=TEXTS, vectors=vectors)
    assert (created["dimensions"], created["texts"], created["embedder"]) == (2, 4, None)
    found = session("search_index", index_id="i", vector=[0, 7], k=2)
    assert found["passages"] == [TEXTS[1], TEXTS[3]]
    assert found["scores"] == pytest.approx([1, 0.5**0.5])


def test_vectors_in_json(ask):
    """An array is a $tensor with base64 there, in both directions."""
    data = base64.b64encode(np.array(VECTORS, "<f8").tobytes()).decode()
    vectors = {"$tensor": {"type": "f64", "shape": [4, 2], "data": data}}
    ask("create_index", index_id="i", texts=TEXTS, vectors=vectors)
    assert ask("search_index", index_id="i", vector=[1, 0], k=1)["indices"] == [0]
    embedded = ask("embed", texts=TEXTS)["vectors"]["$tensor"]
    assert (embedded["type"], embedded["shape"]) == ("f32", [4, 512])
    assert len(base64.b64decode(embedded["data"])) == 4 * 512 * 4


@pytest.mark.parametrize(
    ("vectors", "path"),
    [
        ([], "args.vectors"),
        ([[1.0, 2.0]], "args.vectors"),
        ([[], [], [], []], "args.vectors"),
        ([[1.0], [2.0], [3.0, 4.0], [5.0]], "args.vectors[2]"),
        ([[1.0], ["2"], [3.0], [4.0]], "args.vectors[1][0]"),
        ([[1.0], [True], [3.0], [4.0]], "args.vectors[1][0]"),
        ([[1.0], [2.0], None, [4.0]], "args.vectors[2]"),
        ([[1.0], [float("nan")], [3.0], [4.0]], "args.vectors[1][0]"),
        ([[1.0], [2.0], [3.0], [1e39]], "args.vectors[3][0]"),
        ([[1.0], [2.0], [3.0], [-1e16]], "args.vectors[3][0]"),
        ([1.0, 2.0, 3.0, 4.0], "args.vectors[0]"),
        (np.array([[1, 2], [3, np.inf], [5, 6], [7, 8]]), "args.vectors[1][1]"),
        (np.zeros((4, 2, 1)), "args.vectors"),
        (np.zeros(4), "args.vectors"),
        (np.zeros((4, 0)), "args.vectors"),
        (np.zeros((3, 2)), "args.vectors"),
        (np.zeros((4, 2), np.int32), "args.vectors"),
        (np.zeros((4, 2), np.complex64), "args.vectors"),
        (np.zeros((4, 2), bool), "args.vectors"),
        (np.zeros((4, 70_000), np.float32), "args.vectors"),
        ({"$tensor": {"type": "bf16", "shape": [4, 1], "data": bytes(8)}}, "args.vectors"),
        ({"$tensor": {"type": "f32", "shape": [4, 2], "data": bytes(8)}}, "args.vectors"),
        ({"a": 1}, "args.vectors"),
        ("text", "args.vectors"),
        (7, "args.vectors"),
    ],
)
def test_wrong_vectors(session, vectors, path):
    """Each is invalid_args with the path; there is no index then."""
    with pytest.raises(errors.InvalidArgs) as caught:
        session("create_index", index_id="i", texts=TEXTS, vectors=vectors)
    assert path_of(caught) == path
    assert session("list_indexes")["indexes"] == []


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"texts": []}, "args.texts"),
        ({"texts": ["a", 1]}, "args.texts[1]"),
        ({"texts": "text"}, "args.texts"),
        ({"texts": None}, "args.texts"),
        ({"index_id": ""}, "args.index_id"),
        ({"index_id": "x" * 201}, "args.index_id"),
        ({"metric": "euclidean"}, "args.metric"),
        ({"embedder": "unknown"}, "args.embedder"),
        ({"embedder": "openai/text-embedding-3-small"}, "args.embedder"),
        ({"if_exists": "append"}, "args.if_exists"),
        ({"vector": [1]}, "args"),
    ],
)
def test_wrong_args(session, args, path):
    with pytest.raises(errors.InvalidArgs) as caught:
        session("create_index", **{"index_id": "i", "texts": TEXTS, **args})
    assert caught.value.details["path"].startswith(path)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({}, "args"),
        ({"query": "a", "vector": [1, 2]}, "args"),
        ({"query": "a"}, "args.query"),
        ({"queries": ["a"]}, "args.queries"),
        ({"vector": [1, 2, 3]}, "args.vector"),
        ({"vector": [[1, 2]]}, "args.vector[0]"),
        ({"vector": [1, float("nan")]}, "args.vector[1]"),
        ({"vectors": [1, 2]}, "args.vectors[0]"),
        ({"vector": np.zeros((1, 2))}, "args.vector"),
        ({"vector": [1, 2], "k": 0}, "args.k"),
        ({"vector": [1, 2], "k": 10_001}, "args.k"),
        ({"vector": [1, 2], "k": 1.5}, "args.k"),
        ({"vector": [1, 2], "index_id": "other"}, "args.index_id"),
    ],
)
def test_wrong_searches(session, args, path):
    """Without an embedder, an index finds vectors only."""
    session("create_index", index_id="i", texts=TEXTS, vectors=VECTORS)
    with pytest.raises(errors.InvalidArgs) as caught:
        session("search_index", **{"index_id": "i", **args})
    assert caught.value.details["path"] == path


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_large_numbers(session, metric):
    """Those of vectors that are accepted have finite products."""
    session("create_index", index_id="i", texts=TEXTS, vectors=np.full((4, 65_536), 1e15), metric=metric)
    found = session("search_index", index_id="i", vector=np.full(65_536, -1e15), k=4)
    assert found["indices"] == [0, 1, 2, 3]
    assert np.isfinite(found["scores"]).all()


def test_an_index_that_exists(session):
    """It is kept, replaced, or an error."""
    first = session("create_index", index_id="i", texts=TEXTS)
    with pytest.raises(errors.InvalidArgs) as caught:
        session("create_index", index_id="i", texts=["other"])
    assert caught.value.details == {"path": "args.index_id", "exists": True}
    assert session("create_index", index_id="i", texts=["other"], if_exists="keep") == {**first, "status": "exists"}
    replaced = session("create_index", index_id="i", texts=["other"], if_exists="replace")
    assert (replaced["status"], replaced["texts"]) == ("replaced", 1)
    assert session("search_index", index_id="i", query="bees")["passages"] == ["other"]


def test_texts_are_added(session):
    """The result is that of an index with all texts from the start."""
    random = np.random.default_rng(3)
    vectors = random.standard_normal((30, 8)).astype(np.float32)
    texts = [f"text {number}" for number in range(30)]
    for metric in ("cosine", "dot"):
        session("create_index", index_id="all", texts=texts, vectors=vectors, metric=metric, if_exists="replace")
        args = {"texts": texts[:10], "vectors": vectors[:10], "metric": metric, "if_exists": "replace"}
        session("create_index", index_id="grown", **args)
        for first in (10, 20):
            more = slice(first, first + 10)
            session("add_to_index", index_id="grown", texts=texts[more], vectors=vectors[more])
        found = [session("search_index", index_id=each, vectors=vectors, k=7) for each in ("all", "grown")]
        assert found[0] == found[1]
    for wrong in ({"vectors": [[1.0]]}, {}, {"vectors": [[1.0] * 8] * 2}):
        with pytest.raises(errors.InvalidArgs) as caught:
            session("add_to_index", index_id="grown", texts=["one"], **wrong)
        assert caught.value.details["path"] == "args.vectors"
    session("create_index", index_id="words", texts=TEXTS)
    assert session("add_to_index", index_id="words", texts=["The Eiffel Tower is high."])["texts"] == 5
    assert session("search_index", index_id="words", query="eiffel tower", k=1)["indices"] == [4]


def test_sessions(client):
    """A session finds its own indexes and those of the default session, which it cannot change."""
    client.call("create_index", {"index_id": "shared", "texts": TEXTS})
    client.call("create_index", {"index_id": "own", "texts": ["of a"]}, session_id="a")
    assert [each["index_id"] for each in client.call("list_indexes", session_id="a")["indexes"]] == ["own"]
    assert client.call("list_indexes", session_id="a")["inherited"] == ["shared"]
    asked = {"query": "honey", "k": 1}
    for session_id in (None, "a", "b"):
        found = client.call("search_index", {"index_id": "shared", **asked}, session_id=session_id)
        assert found["passages"] == [TEXTS[2]]
    with pytest.raises(errors.InvalidArgs, match="no index 'own'"):
        client.call("search_index", {"index_id": "own", **asked}, session_id="b")
    for command, args in (("delete_index", {}), ("add_to_index", {"texts": ["x"]})):
        with pytest.raises(errors.InvalidArgs, match="of the default session"):
            client.call(command, {"index_id": "shared", **args}, session_id="a")
    client.call("create_index", {"index_id": "shared", "texts": ["mine"]}, session_id="a")
    assert client.call("search_index", {"index_id": "shared", **asked}, session_id="a")["passages"] == ["mine"]
    assert client.call("delete_index", {"index_id": "shared"}, session_id="a")["status"] == "deleted"
    assert client.call("search_index", {"index_id": "shared", **asked}, session_id="a")["passages"] == [TEXTS[2]]
    client.call("delete_index", {"index_id": "shared"})
    with pytest.raises(errors.InvalidArgs):
        client.call("search_index", {"index_id": "shared", **asked}, session_id="a")


def test_quotas(client):
    """An index counts with its texts and vectors. What does not fit changes nothing."""
    client.call("create_session", {"quota": {"bytes": 20_000}}, session_id="q")
    created = client.call("create_index", {"index_id": "i", "texts": TEXTS}, session_id="q")
    size = client.call("get_session", session_id="q")["bytes"]
    assert size == created["bytes"] + len("i") > 4 * 512 * 4
    for command, texts in (("add_to_index", TEXTS * 3), ("create_index", ["x" * 20_000]), ("create_index", TEXTS * 4)):
        args = {"index_id": "i" if command == "add_to_index" else "j", "texts": texts}
        with pytest.raises(errors.QuotaExceeded):
            client.call(command, args, session_id="q")
    assert client.call("get_session", session_id="q")["bytes"] == size


def test_a_durable_session_keeps_its_indexes(tmp_path):
    """Another worker finds the same, also without a configured embedder."""
    flags = ["--store", f"sqlite:{tmp_path / 'sessions'}"]
    results = []
    for _ in range(2):
        with Client.start(flags=flags) as client:
            client.call("create_session", {"durable": True}, session_id="d")
            client.call("configure_embedder", {"model": "offline", "name": "words"}, session_id="d")
            args = {"index_id": "i", "texts": TEXTS, "embedder": "words", "if_exists": "keep"}
            client.call("create_index", args, session_id="d")
            results.append(client.call("search_index", {"index_id": "i", "query": "capital"}, session_id="d"))
            results.append(client.call("list_indexes", session_id="d"))
    assert results[:2] == results[2:]


def test_a_large_batch_of_queries_is_searched_in_parts(monkeypatch):
    """The scores of all of them together would take too much memory."""
    from bridge.adapters.dspy.retrieval import index

    random = np.random.default_rng(5)
    vectors, queries = (random.standard_normal((rows, 16)).astype(np.float32) for rows in (100, 50))
    texts = [str(number) for number in range(100)]
    made = Index.decode(encode(texts, rows_of(vectors, "cosine"), "cosine", None, ""))
    whole = [*made.search(queries, 3)]
    monkeypatch.setattr(index, "_SCORES_AT_ONCE", 250)
    assert [*made.search(queries, 3)] == whole
