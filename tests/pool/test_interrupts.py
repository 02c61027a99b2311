"""An exception of a signal handler at any moment of a pool's method leaves the pool as usable as before."""

import itertools
from functools import partial

import pytest

from bridge import Pool
from interrupts import elsewhere, interrupted


@pytest.fixture(scope="module")
def pool():
    with Pool(1, adapter="echo") as pool:
        yield pool


@pytest.mark.parametrize(
    "use",
    [
        lambda pool: pool.call("echo", {"a": 1}),
        lambda pool: pool.call("echo", {"session_id": "ann"}),
        lambda pool: pool.submit("echo", {"a": 1}).result(5),
        lambda pool: pool.submit("sleep", {"seconds": 30}).cancel(),
        lambda pool: pool.stream("echo", {"a": 1}),
        lambda pool: pool.status(),
    ],
)
def test_nothing_stays_locked(pool, use):
    for moment in itertools.count():
        is_interrupted = interrupted(moment, partial(use, pool))
        assert elsewhere(lambda: pool.submit("ping", timeout=5).result(5))
        if not is_interrupted:
            break
    assert moment > 5
