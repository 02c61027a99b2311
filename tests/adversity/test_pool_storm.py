"""Short storms over a pool; `pool_storm.py` runs long ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import pool_storm  # found through the line above


@pytest.mark.parametrize(("what", "seconds", "pause"), [("workers", 3, 0.1), ("template", 3, 1.0), ("renew", 3, 0.5)])
def test_every_call_has_one_answer_of_its_own(what, seconds, pause):
    """While workers and templates are killed or replaced; nothing is left afterwards."""
    counts = pool_storm.storm(what, seconds, callers=32, workers=3, pause=pause)
    assert counts["times"] > 0
    assert pool_storm.is_fine(counts), counts
    if what != "workers":
        assert counts["errors"] == {}
