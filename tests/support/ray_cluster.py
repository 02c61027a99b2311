"""A Ray cluster of node processes on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from ray.cluster_utils import Cluster

# A node that ends or hangs is noticed within about two seconds; by default it takes fifteen. No process is started
# before there is something to do for it.
SYSTEM = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 4,
    "enable_worker_prestart": False,
}
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_log_monitor": False}


class RayCluster(Cluster):
    """A head, which is a node too, and a second node. folder: for their files; a short path, for sockets are there."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.add_node(temp_dir=folder, include_dashboard=False, no_monitor=True, _system_config=SYSTEM)
        try:
            self.add_node()
        except BaseException:
            self.shutdown()
            raise

    def add_node(self, **options):
        """Add a node, and return it. Ray gives it 30 s, which may be too little beside other tests: then once more."""
        for is_last in (False, True):
            before = children()
            try:
                return super().add_node(wait=False, **NODE, **options)  # Ray waits for it anyway
            except Exception:
                for pid in children() - before:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                if is_last:
                    raise
        return None


def children() -> set[int]:
    """Return the children of this process."""
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}
