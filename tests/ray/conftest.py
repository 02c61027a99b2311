"""A Ray cluster of two node processes on this machine, for all tests of a run."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

if find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]

# A node that ends or hangs is noticed within about two seconds; by default it takes fifteen.
NOTICE_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 4,
}
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}


@pytest.fixture(scope="session")
def cluster():
    """The cluster: its head, which is a node too, and a second node."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a token would be written to the home folder
    from ray.cluster_utils import Cluster

    head = {**NODE, "include_dashboard": False, "_system_config": NOTICE_SOON}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**NODE)
        yield cluster
    finally:
        import ray

        ray.shutdown()
        cluster.shutdown()
