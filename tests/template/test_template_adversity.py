"""What peers, workers, hosts and the system do to a template: it goes on, and nothing outlives the host."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys

from bridge.template.workers import Child
from peer import SUPPORT, Host, is_running, wait_until

# A host that starts a template and uses two of its workers, tells all pids, and waits to be killed.
HOST = """
import sys, time
from serving import Served
served = Served()
print(served.pid, *[served.worker()[1] for _ in range(2)], flush=True)
time.sleep(600)
"""


def silent(path):
    """Return a connection that has sent nothing."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    return connection


def test_peers_that_say_nothing_cost_no_worker(serve):
    """Those that go away leave nothing; others do not keep anybody from getting a worker."""
    served = serve()
    for _ in range(2000):
        silent(served.path).close()
    present = [silent(served.path) for _ in range(200)]
    host, pid = served.worker()
    assert served.message("worker_started")["pid"] == pid
    assert served.messages == []
    for each in present:
        each.close()
    assert host.is_alive()


def test_garbage_costs_one_worker(serve):
    served = serve()
    host, _ = served.worker()
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0", b"\xff" * 4000, b"\0\0\0\x05\x83\0\0"):
        peer = served.connect()
        peer.send_bytes(garbage)
        peer.close()
    assert host.is_alive()
    assert served.worker()[0].is_alive()


def test_a_refused_peer_may_have_sent_anything(serve):
    """A reply without an id, and the end of the stream."""
    served = serve("--max-workers", "1")
    served.worker()
    for request in (b"\0", b"\0\0\0\x10{", b"\0\0\0\x02{}", b"\xff\xff\xff\xff{"):
        peer = served.connect()
        peer.send_bytes(request)
        reply = peer.receive()
        assert (reply["id"], reply["code"]) == (None, "overloaded")
        assert peer.receive_frame() is None


def silent_beyond_the_limit(served):
    """Return more silent connections than the template may have descriptors."""
    _, hard = resource.prlimit(served.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (24, hard))
    return [silent(served.path) for _ in range(60)]


def test_a_template_without_descriptors_goes_on_when_it_has_some_again(serve):
    served = serve()
    held = silent_beyond_the_limit(served)
    last = Host.connected(served.path)
    last.send({"id": 1, "command": "ping"})
    for each in held:
        each.close()
    reply = last.receive()
    last.close()
    assert reply["success"]


def test_silent_connections_give_way_when_descriptors_are_short(serve):
    """Each batch of them has a second instead of ten, so that a request behind them is answered soon."""
    served = serve()
    held = silent_beyond_the_limit(served)
    last = Host.connected(served.path)
    reply = last.call("ping")
    assert reply["success"]
    assert held[0].recv(1) == b""
    for each in (last, *held):
        each.close()


def test_a_template_that_cannot_fork_refuses(serve):
    """RLIMIT_NOFILE stands for any limit of the system: the pipe for stderr cannot be made."""
    served = serve()
    host, _ = served.worker()
    used = len(os.listdir(f"/proc/{served.pid}/fd"))
    soft, hard = resource.prlimit(served.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
    refused = served.connect()
    reply = refused.call("ping")
    assert reply["code"] == "overloaded"
    assert "a worker cannot be started" in reply["error"]
    resource.prlimit(served.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert served.worker()[0].is_alive()
    assert host.is_alive()


def test_kill_9_of_the_host_ends_everything():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True, env=environment) as host:
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) == 3
        host.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def test_a_stopped_template_is_not_in_the_way_of_calls(serve):
    served = serve()
    host, _ = served.worker()
    os.kill(served.pid, signal.SIGSTOP)
    try:
        assert host.is_alive()
        waiting = served.connect()
        waiting.send({"id": 1, "command": "ping"})
    finally:
        os.kill(served.pid, signal.SIGCONT)
    assert waiting.receive()["success"]


def test_a_worker_that_floods_stderr_delays_nobody(serve):
    """The host reads neither the template's stderr nor the control pipe."""
    served = serve(adapter="processes:adapter")
    loud, pid = served.worker()
    assert loud.call("shout", {"way": "write", "size": 20_000})["success"]
    assert served.worker()[0].is_alive()
    loud.close()
    exited = served.message("worker_exited", pid=pid)
    assert len(exited["stderr"]) <= 8192


def test_a_line_that_a_worker_has_not_finished_is_ended(capfd):
    """Lines of others follow it."""
    ours, workers = os.pipe()
    child = Child(0, ours)
    os.write(workers, b"whole\nha")
    child.pass_on_stderr()
    os.write(workers, b"lf")
    child.pass_on_stderr()
    os.close(workers)
    child.close_stderr()
    assert capfd.readouterr().err == "whole\nhalf\n"


def test_a_host_that_does_not_read_the_control_pipe_delays_nobody(serve):
    served = serve()
    for _ in range(20):
        host = served.connect()
        assert host.is_alive()
        host.close()
    assert served.worker()[0].is_alive()


def test_an_unknown_message_is_logged_and_nonsense_ends_the_template(serve):
    served = serve()
    served.template.send({"type": "dance"})
    served.template.send_bytes(bytes(4))
    host, _ = served.worker()
    served.template.send_frame(b"nonsense")
    assert served.template.wait() == 0
    assert host.is_alive()
    log = served.template.stderr()
    assert "an unknown message on the control pipe: 'dance'" in log
    assert "the template ends: a frame on the control pipe that is no map" in log
