"""Which node has a session."""

from __future__ import annotations

import collections

import pytest

from bridge.ray.ring import Ring

NODES = [f"node {n}" for n in range(10)]
EXPECTED = ["node 2", "node 7", "node 2", "node 3", "node 8"]
SESSIONS = [f"session {n}" for n in range(10_000)]


def test_sessions_are_spread_evenly():
    counts = collections.Counter(map(Ring(NODES).owner, SESSIONS))
    assert set(counts) == set(NODES)
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_only_the_share_of_a_node_moves():
    """Of one that leaves, to all others; and of one that joins."""
    all_nodes, others = Ring(NODES), Ring(NODES[1:])
    moved = [session for session in SESSIONS if all_nodes.owner(session) != others.owner(session)]
    assert {all_nodes.owner(session) for session in moved} == {NODES[0]}
    assert {others.owner(session) for session in moved} == set(NODES[1:])


def test_the_order_of_the_nodes_and_the_process_do_not_matter():
    """The expected values were computed by another process."""
    ring = Ring(reversed(NODES))
    assert [ring.owner(session) for session in SESSIONS[:5]] == EXPECTED
    assert ring.owner("\ud800") in NODES  # no UTF-8


def test_without_nodes_there_is_no_owner():
    with pytest.raises(ValueError, match="empty"):
        Ring(()).owner("ann")
