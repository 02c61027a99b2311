"""Kill -9 under load: no acknowledged change is lost, and none is partial."""

from __future__ import annotations

import kill_writers


def test_workers_killed_while_they_write(tmp_path):
    """Run `kill_writers.py` for a few seconds."""
    count = kill_writers.run_sqlite(tmp_path / "store.db", 5.0, writers=16, rate=8.0)
    assert count.is_clean, count
    assert count.kills >= 5
    assert count.acknowledged >= 50
    assert count.checked >= 16
