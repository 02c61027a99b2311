"""What RayPool says where there is no cluster, or no Ray. These tests start none."""

from __future__ import annotations

import os
import subprocess
import sys


def connecting(*lines, **env):
    """Run lines in a process of its own that does not know the cluster, and return its last line of output."""
    command = [sys.executable, "-c", "\n".join(["from bridge import RayPool, errors", *lines])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    return done.stdout or done.stderr.splitlines()[-1]


def test_an_address_at_which_nobody_listens_is_an_error():
    """Ray itself would end the process after two minutes."""
    lines = [
        "try:",
        "    RayPool(1, adapter='echo')",
        "except errors.WorkerCrashed as error:",
        "    print(error.category, error)",
    ]
    reason = "initialization cannot connect to the Ray cluster at 127.0.0.1:1: Connection refused"
    assert connecting(*lines, RAY_ADDRESS="127.0.0.1:1").strip() == reason


def test_without_ray_the_error_says_what_to_install(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')")
    line = connecting(PYTHONPATH=str(tmp_path))
    assert line == "ImportError: bridge.RayPool needs Ray: pip install 'dspex-bridge[ray]'"
