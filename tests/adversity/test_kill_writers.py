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


def test_workers_and_their_server_killed_while_they_write(postgres):
    """The server is also frozen and restarted after kill -9, and its connections are ended."""
    count = kill_writers.run_postgres(postgres, 6.0, writers=16, rate=8.0, every=0.7)
    assert count.is_clean, count
    assert count.kills >= 5
    assert count.acknowledged >= 16
    assert count.checked >= 16
    assert set(count.disturbances) == {"connections ended", "server frozen", "server killed"}


def test_a_server_killed_while_workers_write(postgres):
    """The workers stay, and connect again."""
    count = kill_writers.run_postgres(postgres, 4.0, writers=16, rate=0.0, every=0.5)
    assert count.is_clean, count
    assert count.acknowledged >= 50
    assert count.disturbances["server killed"] >= 1
