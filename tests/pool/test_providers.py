"""The circuit breaker of a pool: runs are not sent while the provider of their model fails."""

from __future__ import annotations

import pytest

from bridge import Pool, errors
from openai_server import HTTPFault, OpenAIServer

SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
RUN = {"program_id": "qa", "inputs": {"question": "What is it?"}}


def fail(prompt):
    raise HTTPFault(503, "down")


@pytest.fixture(scope="module")
def failing():
    """Return a provider that always fails."""
    with OpenAIServer(fail) as server:
        yield server


@pytest.fixture(scope="module")
def events():
    """Return the events of the pool."""
    return []


@pytest.fixture(scope="module")
def pool(events):
    """Return a pool that runs DSPy programs."""
    with Pool(2, on_event=events.append) as pool:
        pool.call("configure_lm", {"provider": "offline"})
        pool.call("create_program", {"id": "qa", "signature": SIGNATURE})
        yield pool


def use(pool, server, session_id):
    model = {"model": "openai/gpt-4o-mini", "api_base": server.url, "api_key": "k", "retries": 0}
    pool.call("configure_lm", model, session_id=session_id)


def start(pool, way, session_id):
    """Run the program, and return its result."""
    if way == "call":
        return pool.call("execute_program", RUN, session_id=session_id)
    if way == "submit":
        return pool.submit("execute_program", RUN, session_id=session_id).result()
    return pool.stream("execute_program", RUN, session_id=session_id).result()


@pytest.mark.parametrize("way", ["call", "submit", "stream"])
def test_a_provider_that_fails_gets_no_more_requests(pool, failing, events, way):
    """Sessions with the same provider share its circuit; runs with other providers go on."""
    pool._providers._breaker._circuits.clear()
    for session_id in ("ann", "bob"):
        use(pool, failing, session_id)
    for _ in range(5):
        with pytest.raises(errors.LMError):
            start(pool, way, "ann")
    sent = len(failing.requests)
    with pytest.raises(errors.CircuitOpen, match="openai") as raised:
        start(pool, way, "bob")
    assert 0 < raised.value.details["retry_after"] <= 60
    assert len(failing.requests) == sent
    assert start(pool, way, "eve")["outputs"].keys() == {"answer"}
    assert pool.call("ping", session_id="bob")["status"] == "ok"
    assert {"event": "breaker", "provider": "openai", "from": "closed", "to": "open"}.items() <= events[-1].items()


def test_what_is_not_the_providers_fault_does_not_count(pool, failing):
    pool._providers._breaker._circuits.clear()
    use(pool, failing, "ann")
    for _ in range(6):
        with pytest.raises(errors.ProgramNotFound):
            pool.call("execute_program", {**RUN, "program_id": "none"}, session_id="ann")
    with pytest.raises(errors.LMError):
        start(pool, "call", "ann")


def test_a_session_that_has_ended_is_forgotten(pool, failing):
    use(pool, failing, "ann")
    pool.end_session("ann")
    assert "ann" not in pool._providers._providers


def test_a_named_model_has_the_circuit_of_its_provider(pool, failing):
    """Runs on other models, and on several, go on."""
    pool._providers._breaker._circuits.clear()
    model = {"model": "openai/gpt-4o-mini", "api_base": failing.url, "api_key": "k", "retries": 0}
    pool.call("configure_lm", {**model, "name": "far"})
    for _ in range(5):
        with pytest.raises(errors.LMError):
            pool.call("execute_program", {**RUN, "model": "far"})
    with pytest.raises(errors.CircuitOpen, match="openai"):
        pool.call("execute_program", {**RUN, "model": "far"})
    for choice in ({}, {"model": {"models": ["far", "offline/reader"]}}):
        assert pool.call("execute_program", {**RUN, **choice})["outputs"].keys() == {"answer"}
