"""Fixtures that more than one test file of this folder uses."""

from __future__ import annotations

import pytest

from bridge import Pool
from client_uses import SUPPORT_PATH


@pytest.fixture
def start_pool():
    """Return a function that starts pools, which are stopped after the test."""
    pools = []

    def start(workers=2, **options):
        options.setdefault("adapter", "pool_workers:adapter")
        options.setdefault("timeout", 60.0)  # for machines with little time
        pools.append(Pool(workers, env=SUPPORT_PATH, **options))
        return pools[-1]

    yield start
    for pool in pools:
        pool.stop()


@pytest.fixture
def pool(start_pool):
    """Return a pool of two workers."""
    return start_pool()
