"""A worker never outlives its host, and neither do its children."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from peer import SUPPORT, is_running, wait_until

# A host that starts a worker and a bystander which keeps the worker's pipe open, tells their
# pids, and waits to be killed.
HOST = """
import os, subprocess, sys, time
command = [sys.executable, "-m", "bridge", "worker", "--adapter", "hostile:adapter"]
command += ["--grace", "0.2"]
worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          start_new_session=sys.argv[1] == "session")
ping = b'{"id": 1, "command": "ping"}'
worker.stdin.write(len(ping).to_bytes(4, "big") + ping); worker.stdin.flush()
worker.stdout.read(4)
bystander = 0
if sys.argv[2] == "bystander":
    held = {"stdin": worker.stdout, "stdout": worker.stdin}
    bystander = subprocess.Popen(["sleep", "60"], **held).pid
print(worker.pid, bystander, flush=True)
time.sleep(60)
"""


@pytest.fixture
def start_host():
    hosts = []

    def start(*arguments):
        path = os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])
        host = subprocess.Popen(
            [sys.executable, "-c", HOST, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        hosts.append(host)
        worker, bystander = map(int, host.stdout.readline().split())
        return host, worker, bystander

    yield start
    for host in hosts:
        host.kill()
        host.wait()
        host.stdout.close()


def test_kill_9_of_the_host_ends_the_worker(start_host):
    """The worker notices the end of the pipe."""
    host, worker, _ = start_host("session", "alone")
    host.kill()
    wait_until(lambda: not is_running(worker), 10)


def test_the_parents_death_is_enough(start_host):
    """The worker ends with its parent although another process holds the pipe open."""
    host, worker, bystander = start_host("session", "bystander")
    host.kill()
    wait_until(lambda: not is_running(worker), 10)
    assert is_running(bystander), "it is not the worker's to kill"
    os.kill(bystander, signal.SIGKILL)


def test_a_worker_in_its_hosts_group_kills_its_own_children_only(start_peer, start_host):
    """It does not lead the process group, so other processes of the group are not killed."""
    host, worker, _ = start_host("shared", "alone")
    host.kill()
    wait_until(lambda: not is_running(worker), 10)
    assert is_running(os.getpid())


@pytest.mark.parametrize("end", ["eof", "shutdown", "sigterm"])
def test_children_end_with_the_worker(start_peer, end):
    """A process that a handler started ends with the worker, however that ends."""
    peer = start_peer("--grace", "0.2", adapter="hostile:adapter")
    child = peer.call("child")["result"]["pid"]
    assert is_running(child)
    if end == "eof":
        peer.close_input()
    elif end == "shutdown":
        assert peer.call("shutdown")["result"]["status"] == "shutting_down"
    else:
        peer.process.send_signal(signal.SIGTERM)
    assert peer.wait(10) == 0
    wait_until(lambda: not is_running(child), 10)


def test_children_end_even_if_the_gil_is_held(start_peer):
    """The native thread kills them."""
    peer = start_peer("--grace", "0.2", adapter="hostile:adapter")
    child = peer.call("child")["result"]["pid"]
    peer.send({"id": 2, "command": "hold_gil", "args": {"seconds": 600}})
    peer.send_frame(b"")
    assert peer.receive_frame() == b""
    peer.close_input()
    assert peer.wait(10) == 0
    wait_until(lambda: not is_running(child), 10)


def test_sigterm_while_the_reader_waits_is_never_lost(start_peer):
    """A signal that arrives just before the read that it should interrupt is handled."""
    for _ in range(20):
        peer = start_peer()
        peer.is_alive()
        peer.process.send_signal(signal.SIGTERM)
        assert peer.wait(10) == 0
        assert peer.stderr() == ""


def test_shutdown_ends_the_worker_after_its_reply(peer):
    """The exit status is 0, stderr is empty, and there are no later replies."""
    peer.send({"id": 1, "command": "shutdown"})
    peer.send({"id": 2, "command": "ping"})
    assert peer.receive()["id"] == 1
    assert peer.receive_frame() is None
    assert peer.wait() == 0
    assert peer.stderr() == ""
