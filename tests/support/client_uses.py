"""Helpers for tests of the Python client: calls, streams, callbacks, forks."""

from __future__ import annotations

import os

from peer import SUPPORT

SUPPORT_PATH = {"PYTHONPATH": os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))}


HANG = 30  # seconds after which a test considers its subject to hang


ENDLESS = {"size": 1_000_000}  # args of `emit`, which is paused long before it has sent that many events


def is_idle(client):
    return client.stats()["in_flight"] == 0
