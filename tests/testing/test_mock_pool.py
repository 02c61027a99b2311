"""`MockPool`: the real pool, whose workers are doubles in this process."""

from __future__ import annotations

import pytest

from bridge import Pool, errors
from bridge.testing import Mock, MockPool

SIGNATURE = {"inputs": [{"name": "q"}], "outputs": [{"name": "answer"}]}
RUN = {"program_id": "p", "inputs": {"q": "a"}}


@pytest.fixture
def pool():
    with MockPool(workers=2) as pool:
        pool.call("configure_lm", {"provider": "offline"})
        pool.call("create_program", {"id": "p", "signature": SIGNATURE})
        yield pool


def test_it_is_a_pool(pool):
    """What calls without a session change is changed in all workers; a session stays in one."""
    assert isinstance(pool, Pool)
    assert len(pool.mock.calls("create_program")) == 2
    pool.mock.set_response("answer", "yes")
    for n in range(8):
        result = pool.call("execute_program", RUN, session_id=f"session {n}")
        assert result["outputs"] == {"answer": "yes"}
    pool.end_session("session 1")
    with pytest.raises(errors.SessionNotFound):
        pool.session_info("session 1")
    with pool.stream("execute_program", RUN) as stream:
        assert ("chunk", {"field": "answer", "text": "yes"}) in list(stream)
    assert len(pool.status()["slots"]) == 2


def test_its_tools_are_called(pool):
    """Those of all workers, which share them."""
    called = []

    def look_up(q: str) -> str:
        called.append(q)
        return "found"

    pool.register_tools([look_up])
    pool.call("create_program", {"id": "r", "signature": SIGNATURE, "program_type": "react"})
    for _ in range(4):
        pool.call("execute_program", {"program_id": "r", "inputs": {"q": "a"}})
    assert called == ["a"] * 4


def test_a_crash(pool):
    """New workers have what all share; a session that was lost is reported."""
    pool.call("execute_program", RUN, session_id="ann")
    pool.mock.crash()
    with pytest.raises((errors.WorkerCrashed, errors.SessionLost)):
        pool.call("execute_program", RUN, session_id="ann")
    assert pool.call("list_programs")["total_count"] == 1


def test_errors_go_through_the_pools_policy(pool):
    """A call that was not started is made once more."""
    pool.mock.inject_error("execute_program", errors.Overloaded("full", started=False, retry_after=0.01), times=1)
    assert pool.call("execute_program", RUN)["outputs"]
    assert len(pool.mock.calls("execute_program")) == 2


def test_a_mock_of_its_own_ends_with_it():
    """A mock that was given does not."""
    with Mock() as mock:
        with MockPool(workers=1, mock=mock, flags=["--threads", "2"]) as pool:
            assert pool.call("ping")["status"] == "ok"
        with MockPool(workers=1, mock=mock) as pool:
            assert pool.call("ping")["status"] == "ok"
