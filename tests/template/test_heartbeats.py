"""Heartbeats on a connection that has no worker, and the command that sends one for the probes of containers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from functools import partial

import pytest

from bridge import health
from bridge.health import Unhealthy, check
from peer import DEADLINE

HEARTBEAT = bytes(4)
SHORT = 0.2  # seconds to wait for what does not come


def run(address, *flags):
    command = [sys.executable, "-P", "-m", "bridge", "health", address, *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


@pytest.fixture
def answer(tmp_path, monkeypatch):
    """Return a function that listens at the path "s", sends `data` to the next connection, and closes it."""
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        listener.listen()

        def start(data):
            def send():
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):  # the check may have ended
                    connection.recv(4, socket.MSG_WAITALL)
                    for byte in data:
                        connection.send(bytes([byte]))

            thread = threading.Thread(target=send, daemon=True)
            thread.start()
            return "s"

        yield start


def test_a_template_answers_heartbeats_without_a_worker(serve):
    """Also when no worker can be had. The connection gets a worker at its first request."""
    served = serve("--max-workers", "1")
    host = served.connect()
    for count in (1, 3, 1):
        host.send_bytes(HEARTBEAT * count)
        assert [host.receive_frame() for _ in range(count)] == [b""] * count
    assert run(f"unix:{served.path}").returncode == 0
    other, _ = served.worker()
    assert run(f"unix:{served.path}").returncode == 0
    assert host.call("hello")["code"] == "overloaded"
    other.close()
    served.message("worker_exited")
    assert [message["type"] for message in served.messages] == ["worker_started"]


def test_a_request_may_follow_in_the_same_bytes(serve):
    """The heartbeats are answered first, and the worker gets the request as it is."""
    host = serve().connect()
    request = b'{"id": 1, "command": "ping"}'
    host.send_bytes(HEARTBEAT * 2 + len(request).to_bytes(4, "big") + request)
    assert [host.receive_frame(), host.receive_frame()] == [b"", b""]
    assert host.receive()["success"]


@pytest.mark.parametrize("cut", [1, 3, 5, 7])
def test_a_frame_may_arrive_in_pieces(serve, cut):
    """Wherever it is cut, also within the first zeros of a length."""
    host = serve().connect()
    request = b'{"id": 1, "command": "ping"}'
    stream = HEARTBEAT + len(request).to_bytes(4, "big") + request
    host.send_bytes(stream[:cut])
    if cut >= 4:
        assert host.receive_frame() == b""
    host.send_bytes(stream[cut:])
    if cut < 4:
        assert host.receive_frame() == b""
    assert host.receive()["success"]


def test_more_heartbeats_than_fit_into_a_socket_cost_only_their_connection(serve):
    """A peer that does not read the answers is disconnected."""
    served = serve()
    with socket.socket(socket.AF_UNIX) as flood:
        flood.connect(served.path)
        flood.settimeout(DEADLINE)
        flooding = iter(partial(flood.send, HEARTBEAT * 1024), 0)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            deque(flooding, maxlen=0)
    assert served.connect().call("ping")["success"]


def test_a_draining_template_ends_although_a_connection_sends_heartbeats(serve):
    """Heartbeats do not make it wait for longer than a second."""
    served = serve()
    host = served.connect()
    host.send_bytes(HEARTBEAT)
    assert host.receive_frame() == b""
    os.kill(served.pid, signal.SIGTERM)
    end = host.receive_frame()
    assert end is None
    assert served.template.wait() == 0


def test_the_command_reports_in_one_line(serve):
    served = serve()
    good = run(f"unix:{served.path}")
    assert (good.returncode, good.stdout, good.stderr) == (0, f"unix:{served.path} answers\n", "")
    bad = run(f"unix:{served.path}.none")
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == f"dspex-bridge health: unix:{served.path}.none: No such file or directory\n"
    assert run("tcp:1").returncode == 2
    assert run(f"unix:{served.path}", "--timeout", "0").returncode == 2


def test_a_template_that_is_stopped_does_not_answer(serve):
    """It still accepts the connection, as the system does that."""
    served = serve()
    os.kill(served.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Unhealthy, match=r"no answer within 0\.2 s"):
            check(served.path, SHORT)
    finally:
        os.kill(served.pid, signal.SIGCONT)
    check(served.path, DEADLINE)


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as closed:
        closed.bind("s")
    with pytest.raises(Unhealthy, match="Connection refused"):
        check("s", SHORT)


def test_a_full_backlog(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind("s")
        listener.listen(0)
        waiting.connect("s")
        with pytest.raises(Unhealthy, match="too many connections wait"):
            check("s", SHORT)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it has closed the connection"),
        (b"\0\0", "it has closed the connection"),
        (b"HTTP/1.1 400", "what it has sent is no heartbeat"),
        (b"\0\0\0\2{}", "what it has sent is no heartbeat"),
    ],
)
def test_other_servers(answer, data, reason):
    """Whatever listens there, in whatever pieces it answers."""
    with pytest.raises(Unhealthy, match=reason):
        check(answer(data), DEADLINE)


def test_an_answer_in_pieces(answer):
    check(answer(HEARTBEAT), DEADLINE)


def test_the_command_loads_almost_nothing():
    """A probe runs every few seconds."""
    command = [sys.executable, "-X", "importtime", "-P", "-m", "bridge", "health", "unix:/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {name for name in loaded if name.startswith("bridge")} == {
        *("bridge", "bridge.version", "bridge.cli", "bridge.addresses", health.__name__)
    }
    assert not loaded & {"msgspec", "json", "logging", "inspect", "subprocess"}
