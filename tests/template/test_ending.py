"""How a template ends: nobody who has connected is turned away, every worker ends, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from peer import SUPPORT, wait_until


def start(folder, adapter, *flags, env=None, stdin=subprocess.DEVNULL, **options):
    """Start a template by hand, at the socket `s` in `folder`."""
    command = [sys.executable, "-P", "-m", "bridge", "serve", "--listen", "unix:s", "--adapter", adapter, *flags]
    environment = {**os.environ, "PYTHONPATH": SUPPORT, **(env or {})}
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=stdin, **options)


@pytest.mark.parametrize("way", ["stop", "SIGTERM"])
def test_connections_that_have_been_made_are_served(serve, way):
    """Also if they arrive together with what ends the template, and send their first bytes later."""
    served = serve()
    os.kill(served.pid, signal.SIGSTOP)
    if way == "stop":
        served.template.send({"type": "stop"})
    else:
        os.kill(served.pid, signal.SIGTERM)
    early, late, silent = (served.connect() for _ in range(3))
    early.send({"id": 1, "command": "ping"})
    os.kill(served.pid, signal.SIGCONT)
    assert early.receive()["success"]
    assert late.is_alive()
    assert silent.receive_frame() is None
    early.close()
    late.close()
    assert served.template.wait() == 0


def test_a_worker_that_cannot_end_is_killed(serve):
    """A stopped process gets no SIGTERM."""
    served = serve("--drain", "1", "--grace", "0.1")
    _, pid = served.worker()
    os.kill(pid, signal.SIGSTOP)
    os.kill(served.pid, signal.SIGTERM)
    assert served.message("worker_exited", pid=pid)["signal"] == "SIGKILL"
    assert served.template.wait() == 0
    assert "1 workers still run and get SIGKILL" in served.template.stderr()


def test_the_end_of_the_last_worker_is_reported(serve):
    served = serve(adapter="processes:adapter")
    host, pid = served.worker()
    served.template.send({"type": "stop"})
    wait_until(lambda: not os.path.exists(served.path))
    host.send({"id": 1, "command": "last_words", "args": {"way": "kill"}})
    exited = served.message("worker_exited", pid=pid)
    assert exited["signal"] == "SIGKILL"
    assert "last words" in exited["stderr"]
    assert served.template.wait() == 0


def test_a_signal_after_stop_is_the_first_one(serve):
    """The workers then have the time for draining."""
    served = serve()
    host, _ = served.worker()
    served.template.send({"type": "stop"})
    wait_until(lambda: not os.path.exists(served.path))
    os.kill(served.pid, signal.SIGTERM)
    assert host.is_alive()
    os.kill(served.pid, signal.SIGTERM)
    assert host.receive_frame() is None
    assert served.template.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_template_that_prepares_itself_can_be_ended(tmp_path, number):
    with start(tmp_path, "template_adapter:slow") as template:
        wait_until((tmp_path / "s").exists)
        template.send_signal(number)
        assert template.wait(30) == 0
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_template_that_loads_its_modules_can_be_ended(tmp_path, number):
    program = f"""
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "bridge.template.main":
            os.kill(os.getpid(), {number:d})
sys.meta_path.insert(0, Finder())
from bridge.cli import main
main(["serve", "--adapter", "echo", "--listen", "unix:{tmp_path}/s"])
"""
    done = subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 0
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("hosts_end", [subprocess.PIPE, None])
def test_a_template_that_prepares_itself_ends_with_its_host(tmp_path, hosts_end):
    """Whether the control pipe is a pipe or a socket."""
    ours, others = socket.socketpair()
    flags = ["--control", "json"]
    with start(tmp_path, "template_adapter:slow", *flags, stdin=hosts_end or others, stdout=others) as template:
        others.close()
        wait_until((tmp_path / "s").exists)
        if template.stdin is not None:
            template.stdin.close()
        ours.close()
        assert template.wait(30) == 0
    assert not (tmp_path / "s").exists()


def test_a_host_that_ends_without_having_read_the_control_socket(tmp_path):
    ours, others = socket.socketpair()
    with start(tmp_path, "echo", "--control", "json", stdin=others, stdout=others, stderr=subprocess.PIPE) as template:
        others.close()
        ours.recv(1, socket.MSG_PEEK)
        ours.close()
        assert template.wait(30) == 0
        assert template.stderr.read() == b""


@pytest.mark.parametrize("stderr", ["/dev/full", "closed"])
def test_a_template_whose_output_nobody_reads_goes_on(tmp_path, stderr):
    output = os.open("/dev/full", os.O_WRONLY)
    if stderr == "closed":
        reader, output = os.pipe()
        os.close(reader)
    with start(tmp_path, "echo", stderr=output) as template, socket.socket(socket.AF_UNIX) as host:
        os.close(output)
        wait_until((tmp_path / "s").exists)
        host.settimeout(30)
        host.connect(str(tmp_path / "s"))
        host.sendall(bytes(4))
        assert host.recv(4) == bytes(4)
        template.terminate()
        host.close()
        assert template.wait(30) == 0


def test_a_supervisor_that_cannot_be_notified_is_no_reason_to_end(tmp_path):
    environment = {"NOTIFY_SOCKET": str(tmp_path / "nobody")}
    with start(tmp_path, "echo", stderr=subprocess.PIPE, text=True, env=environment) as template:
        assert "systemd cannot be notified at" in template.stderr.readline()
        assert "listening on unix:s" in template.stderr.readline()
        template.terminate()
        assert template.wait(30) == 0
