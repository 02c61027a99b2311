"""Embedders: the built-in one, those of the host, and those of providers, against HTTP on loopback."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from bridge import Client, errors
from model_server import KEY, ModelServer

TEXTS = ["one", "three", "seven"]


def lengths(texts: list[str]) -> list[list[float]]:
    """Embed texts by their lengths."""
    return [[float(len(text)), 1.0] for text in texts]


def as_array(texts: list[str]) -> np.ndarray:
    return np.array(lengths(texts), np.float32)


def wrong(texts: list[str]) -> object:
    """Return what the text says."""
    return {"few": [[1.0]] * (len(texts) - 1), "ragged": [[1.0]] * (len(texts) - 1) + [[1.0, 2.0]], "text": "no",
            "nothing": None, "nan": [[float("nan")]] * len(texts), "map": {"a": 1}}[texts[0]]  # fmt: skip


def failing(texts: list[str]) -> object:
    raise ValueError("the embedder is out of order")


asked, go_on = threading.Event(), threading.Event()


def slow(texts: list[str]) -> list[list[float]]:
    asked.set()
    go_on.wait()
    return lengths(texts)


@pytest.fixture(scope="module")
def client():
    embedders = {"lengths": lengths, "array": as_array, "wrong": wrong, "failing": failing, "slow": slow}
    with Client.start() as client:
        client.register(embedders=embedders)
        yield client
        go_on.set()


@pytest.fixture
def session(client, request):
    """Return a function session(command, **args) that calls a command in a session of its own."""
    # The first request to a provider loads LiteLLM.
    return lambda command, **args: client.call(command, args, session_id=request.node.name, timeout=300)


def answer(body):
    """Answer as OpenAI does, in another order."""
    texts = body["input"]
    data = [{"object": "embedding", "index": at, "embedding": each} for at, each in enumerate(lengths(texts))]
    usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
    return 200, {}, {"object": "list", "model": "m", "data": data[::-1], "usage": usage}


@pytest.fixture
def provider():
    """A provider whose answers are those of `answer`, or the next one of `provider.next`."""
    with ModelServer(lambda body: server.next.pop(0) if server.next else answer(body)) as server:
        server.next = []
        yield server


def configure(session, provider, **more):
    args = {"model": "openai/text-embedding-3-test", "api_base": f"{provider.url}/v1", "api_key": KEY, **more}
    return session("configure_embedder", **args)


def test_the_built_in_embedder(session):
    """It is the default. Its vectors are the same each time, and similar for texts that share words."""
    texts = ["The cat sat on the mat.", "A cat was sitting on a mat", "Interest rates rose again.", "", "?!"]
    vectors = session("embed", texts=texts)["vectors"]
    assert vectors.shape == (5, 512)
    assert vectors.dtype == np.float32
    assert (vectors == session("embed", texts=texts, embedder="offline")["vectors"]).all()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0, 0])
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > abs(vectors[0] @ vectors[2])
    assert vectors[0][:3].tolist() == pytest.approx(session("embed", texts=[texts[0]])["vectors"][0][:3].tolist())


@pytest.mark.parametrize("name", ["lengths", "array"])
def test_an_embedder_of_the_host(session, name):
    """It returns lists of numbers or an array."""
    assert session("embed", texts=TEXTS, embedder=f"host/{name}")["vectors"].tolist() == lengths(TEXTS)
    session("create_index", index_id="i", texts=TEXTS, embedder=f"host/{name}")
    assert session("search_index", index_id="i", query="abc", k=1)["passages"] == ["one"]


@pytest.mark.parametrize("what", ["few", "ragged", "text", "nothing", "nan", "map"])
def test_a_host_that_returns_no_vectors(session, what):
    """The error says what was returned."""
    with pytest.raises(errors.LMError, match="host/wrong has not returned a vector for each text") as caught:
        session("create_index", index_id="i", texts=[what, "b", "c"], embedder="host/wrong")
    assert caught.value.details["lm_code"] == "invalid_vectors"
    assert session("list_indexes")["indexes"] == []


def test_a_host_that_fails(session):
    """The error is the host's."""
    with pytest.raises(errors.HandlerError, match="out of order"):
        session("embed", texts=TEXTS, embedder="host/failing")
    with pytest.raises(errors.UnknownCommand, match="unknown embedder 'nobody'"):
        session("embed", texts=TEXTS, embedder="host/nobody")


def test_a_session_is_not_blocked_while_its_index_is_made(client):
    """Later calls run meanwhile; a call that ends makes no index."""
    args = {"index_id": "i", "texts": TEXTS, "embedder": "host/slow"}
    call = client.submit("create_index", args, session_id="blocked")
    assert asked.wait(60)
    assert client.call("list_indexes", session_id="blocked")["indexes"] == []
    call.cancel()
    go_on.set()
    assert client.call("list_indexes", session_id="blocked")["indexes"] == []
    args = {**args, "embedder": "host/lengths"}
    assert client.call("create_index", args, session_id="blocked")["status"] == "created"


def test_embedders_by_name(session, provider, client):
    """A session has its own and those of all sessions; the one without a name is the default."""
    client.call("configure_embedder", {"name": "everyone's", "model": "host/lengths"})
    session("configure_embedder", name="own", model="array", provider="host")
    assert session("configure_embedder", model="host/lengths") == {
        "status": "configured",
        "embedder": "default",
        "model": "host/lengths",
    }
    for name in ("everyone's", "own", None):
        assert session("embed", texts=TEXTS, embedder=name)["vectors"].tolist() == lengths(TEXTS)
    with pytest.raises(errors.InvalidArgs, match="no embedder 'own'"):
        client.call("embed", {"texts": TEXTS, "embedder": "own"})


def test_a_provider(session, provider):
    """Texts are sent in batches, and the vectors arranged by their index."""
    assert configure(session, provider, batch_size=2, dimensions=2)["model"] == "openai/text-embedding-3-test"
    assert session("embed", texts=TEXTS)["vectors"].tolist() == lengths(TEXTS)
    assert [body["input"] for body in provider.requests] == [TEXTS[:2], TEXTS[2:]]
    assert [body["dimensions"] for body in provider.requests] == [2, 2]
    session("create_index", index_id="i", texts=TEXTS)
    assert session("search_index", index_id="i", query="abc", k=1)["passages"] == ["one"]


def test_retries(session, provider):
    """A request that may succeed later is repeated."""
    configure(session, provider, retries=1)
    provider.next = [(429, {"Retry-After": "0"}, {"error": {"message": "slow down"}})]
    assert session("embed", texts=TEXTS)["vectors"].tolist() == lengths(TEXTS)
    assert len(provider.requests) == 2


def test_a_count_of_tokens_that_is_no_number(session, provider):
    """It is not counted; the vectors are right."""
    configure(session, provider)
    data = [{"index": at, "embedding": each} for at, each in enumerate(lengths(TEXTS))]
    provider.next = [(200, {}, {"data": data, "usage": {"prompt_tokens": "few"}})]
    assert session("embed", texts=TEXTS)["vectors"].tolist() == lengths(TEXTS)


@pytest.mark.parametrize(
    ("response", "code", "attempts"),
    [
        ((401, {}, {"error": {"message": f"wrong key {KEY}"}}), "auth", 1),
        ((400, {}, {"error": {"message": "empty text"}}), "invalid_request", 1),
        ((500, {"Retry-After": "0"}, {"error": {"message": "oops"}}), "server", 2),
        ((200, {}, b"garbage"), None, None),
        ((200, {}, {"data": []}), None, None),
        ((200, {}, {"data": [{"index": 0, "embedding": [1, 2]}]}), None, None),
        (None, None, None),
    ],
)
def test_failures_of_a_provider(session, provider, response, code, attempts):
    """Each is an lm_error without the key, and the next call works."""
    configure(session, provider, retries=1)
    provider.next = [response] * 4
    with pytest.raises(errors.LMError) as caught:
        session("embed", texts=TEXTS)
    assert KEY not in str(caught.value) + str(caught.value.details)
    if code:
        assert caught.value.details["lm_code"] == code
        assert len(provider.requests) == attempts
    provider.next = []
    assert session("embed", texts=TEXTS)["vectors"].tolist() == lengths(TEXTS)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({}, "args.model"),
        ({"model": "unheard/of"}, "args.model"),
        ({"model": "scripted/answers"}, "args.model"),
        ({"model": "host/"}, "args.model"),
        ({"model": "host"}, "args.model"),
        ({"model": "offline/large"}, "args.model"),
        ({"model": "offline", "api_key": "k" * 20}, "args.api_key"),
        ({"model": "host/x", "api_base": "http://127.0.0.1"}, "args.api_base"),
        ({"model": "openai/x", "name": "a/b"}, "args.name"),
        ({"model": "openai/x", "name": ""}, "args.name"),
        ({"model": "host/x", "name": "offline"}, "args.name"),
        ({"model": "openai/x", "batch_size": 0}, "args.batch_size"),
        ({"model": "openai/x", "dimensions": 0}, "args.dimensions"),
        ({"model": "openai/x", "retries": 11}, "args.retries"),
        ({"model": "openai/x", "timeout": 0}, "args.timeout"),
        ({"model": "openai/x", "api_key": "line\nbreak"}, "args.api_key"),
        ({"model": "openai/x", "api_base": "no address"}, "args.api_base"),
        ({"model": "openai/x", "api_base": "http://169.254.169.254", "api_key": "k"}, "args.api_base"),
        ({"model": "openai/x", "api_base": "http://127.0.0.1:1"}, "args.api_base"),
        ({"model": "openai/x", "cache": 1}, "args.cache"),
    ],
)
def test_wrong_settings(session, args, path):
    """Among them: an address that the worker's own key must not be sent to."""
    with pytest.raises(errors.InvalidArgs) as caught:
        session("configure_embedder", **args)
    assert caught.value.details["path"] == path or path in str(caught.value)
    assert "line\nbreak" not in str(caught.value)


def test_a_key_of_the_environment(provider):
    """The operator has to allow the variable, and the address."""
    args = {"model": "openai/text-embedding-3-test", "api_base": f"{provider.url}/v1", "api_key": {"env": "MY_KEY"}}
    flags = ["--api-key-env", "MY_KEY", "--api-base", f"{provider.url}/v1"]
    with Client.start(flags=flags, env={"MY_KEY": KEY}) as client:
        with pytest.raises(errors.NotAllowed):
            client.call("configure_embedder", {**args, "api_key": {"env": "PATH"}})
        client.call("configure_embedder", args)
        assert client.call("embed", {"texts": TEXTS}, timeout=300)["vectors"].tolist() == lengths(TEXTS)


def test_keys_are_not_stored(tmp_path, provider):
    """A restored session says that its embedder needs its key."""
    flags = ["--store", f"sqlite:{tmp_path / 'sessions'}"]
    args = {"model": "openai/x", "api_base": f"{provider.url}/v1", "api_key": KEY}
    with Client.start(flags=flags) as client:
        client.call("create_session", {"durable": True}, session_id="d")
        client.call("configure_embedder", args, session_id="d")
        client.call("embed", {"texts": TEXTS}, session_id="d", timeout=300)
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())
    with Client.start(flags=flags) as client:
        with pytest.raises(errors.LMNotConfigured, match="send configure_embedder again"):
            client.call("embed", {"texts": TEXTS}, session_id="d", timeout=300)
        client.call("configure_embedder", args, session_id="d")
        assert client.call("embed", {"texts": TEXTS}, session_id="d", timeout=300)["vectors"].tolist() == lengths(TEXTS)
