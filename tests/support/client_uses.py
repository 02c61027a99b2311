"""Calls, streams and callbacks of the Python client; clients in forks; what a client shows."""

from __future__ import annotations

import os

from peer import SUPPORT

SUPPORT_PATH = {"PYTHONPATH": os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))}


HANG = 30  # seconds after which something that should have happened is taken to hang


ENDLESS = {"size": 1_000_000}  # of `emit`: it is held back long before


def is_idle(client):
    return client.stats()["in_flight"] == 0
