"""Helpers for tests of the Python client: calls, streams, callbacks, forks."""

from __future__ import annotations

import os

from peer import SUPPORT

SUPPORT_PATH = {"PYTHONPATH": os.pathsep.join(filter(None, [SUPPORT, os.environ.get("PYTHONPATH")]))}


HANG = 30  # seconds after which a test considers its subject to hang


ENDLESS = {"size": 1_000_000}  # args of `emit`, which is paused long before it has sent that many events


def is_idle(client):
    return client.stats()["in_flight"] == 0


def in_a_fork(check):
    """Run `check` in a fork of this process, and return its result as text."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(check())
        except BaseException as error:
            answer = f"raised {error!r}"
        os.write(write_fd, answer.encode())
        os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd) as answers:
        answer = answers.read()
    os.waitpid(pid, 0)
    return answer
