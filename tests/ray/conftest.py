"""A Ray cluster of two node processes on this machine, for all tests of a run."""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec

import pytest

if find_spec("ray") is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def cluster():
    """The cluster: its head, which is a node too, and a second node. Nothing of it is left after the tests."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a token would be written to the home folder
    import ray

    from ray_cluster import RayCluster

    folder = tempfile.mkdtemp(prefix="ray-")
    try:
        cluster = RayCluster(folder)
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
