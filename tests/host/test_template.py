"""A template that a Python host starts: its clients, the ends of its workers, and its own end."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

from bridge import errors
from bridge.host.template import Template
from client_uses import HANG, SUPPORT_PATH, in_a_fork
from peer import is_running, wait_until


def folder_of(template):
    return os.path.dirname(template.address.removeprefix("unix:"))


@pytest.fixture
def template():
    template = Template.start(adapter="hostile:adapter", env=SUPPORT_PATH)
    template.wait_ready(HANG)
    yield template
    template.stop()
    assert not os.path.exists(folder_of(template))


def test_each_client_has_a_worker_of_its_own(template):
    """The folder of the socket is for this user only."""
    with template.connect() as one, template.connect(format="json") as other:
        assert len({one.pid, other.pid, template.pid, os.getpid()}) == 4
        one.call("update_session_data", {"key": "a", "value": 1})
        assert other.call("get_session_data", {})["data"] == {}
        assert os.stat(folder_of(template)).st_mode & 0o777 == 0o700
        assert one.stop() == 0
        assert other.call("ping")["status"] == "ok"


def test_a_crash_has_status_and_last_output(template):
    """Open calls, later ones and the template itself know how a worker has ended."""
    client = template.connect()
    waiting = client.submit("sleep", {"seconds": 60})
    client.call("print")
    os.kill(client.pid, signal.SIGKILL)
    for call in (lambda: waiting.result(HANG), lambda: client.call("ping")):
        with pytest.raises(errors.WorkerCrashed, match="the worker was ended by SIGKILL") as raised:
            call()
        assert raised.value.details["exit_status"] == -signal.SIGKILL
        assert "sys.__stdout__" in raised.value.details["stderr"]
    assert template.exit_of(client.pid).status == -signal.SIGKILL
    assert client.kill() == -signal.SIGKILL


def test_the_end_of_a_worker_is_noticed_although_a_child_holds_its_socket(template):
    """The template reports the process, not the connection."""
    client = template.connect()
    child = client.call("fork", {"seconds": 60})["pid"]
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(errors.WorkerCrashed, match="SIGKILL"):
        client.call("ping", timeout=HANG)
    if is_running(child):
        os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("state", ["stopped", "holds the GIL"])
def test_stop_kills_a_worker_that_hangs(template, state):
    """It is killed after the timeout, with its children, although it does not notice the end of its connection."""
    client = template.connect()
    child = client.call("child")["pid"]
    if state == "stopped":
        os.kill(client.pid, signal.SIGSTOP)
    else:
        client.cast("hold_gil", {"seconds": 600})
    assert client.stop(timeout=0.1) == -signal.SIGKILL
    wait_until(lambda: not is_running(client.pid) and not is_running(child))


def test_the_end_of_the_template_does_not_end_its_workers(template):
    """Clients then do not know how a worker ends, and new ones cannot connect."""
    ended = []
    template._ended = lambda: ended.append(True)
    client = template.connect()
    os.kill(template.pid, signal.SIGKILL)
    wait_until(lambda: not template.is_alive)
    assert client.call("ping")["status"] == "ok"
    with pytest.raises(errors.WorkerCrashed, match="there is no such socket"):
        template.connect()
    wait_until(lambda: ended)
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(errors.WorkerCrashed, match="the worker closed the connection") as raised:
        client.call("ping")
    assert raised.value.details == {}
    assert client.stop() is None


def test_a_template_that_is_drained_ends_with_its_last_worker(template):
    """It accepts no more connections."""
    client = template.connect()
    template.drain()
    wait_until(lambda: not os.path.exists(template.address.removeprefix("unix:")))
    assert client.call("ping")["status"] == "ok"
    assert template.is_alive
    client.stop()
    wait_until(lambda: not template.is_alive)


def test_a_template_that_does_not_start():
    """The error has its output; the folder is removed."""
    template = Template.start(adapter="no_such_module:adapter")
    with pytest.raises(errors.WorkerCrashed, match="the template did not start: the template ended with") as raised:
        template.wait_ready(HANG)
    assert raised.value.category == "initialization"
    assert "no module 'no_such_module'" in raised.value.details["stderr"]
    assert not template.is_alive
    assert not os.path.exists(folder_of(template))
    template.stop()


def test_a_template_that_is_not_ready_in_time(tmp_path):
    """The error says so, and the template can be killed."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    template = Template.start(python=str(program))
    with pytest.raises(errors.WorkerCrashed, match=r"the template was not ready within 0\.05 s"):
        template.wait_ready(0.05)
    template.kill()
    assert not is_running(template.pid)


def test_a_template_that_sends_nonsense_is_killed(tmp_path):
    """It ends, and whoever waits for it gets the reason."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nprintf '\\0\\0\\0\\1\\200\\0\\0\\0\\1\\001'\nexec sleep 60\n")
    program.chmod(0o755)
    template = Template.start(python=str(program))
    with pytest.raises(errors.WorkerCrashed, match="frame that cannot be read"):
        template.wait_ready(HANG)
    wait_until(lambda: not is_running(template.pid))


def test_a_fork_leaves_the_template_alone(template):
    """Neither its end nor its own attempts change anything."""
    client = template.connect()
    answer = in_a_fork(template.stop)
    assert "RuntimeError" in answer
    assert template.is_alive
    assert os.path.exists(folder_of(template))
    assert client.stop() == 0


def test_everything_ends_with_a_host_that_is_killed():
    """The template and its workers notice the end of the host."""
    program = """
import time
from bridge.host.template import Template
template = Template.start(adapter="echo")
template.wait_ready(30)
clients = [template.connect() for _ in range(3)]
print(template.pid, *(client.pid for client in clients), template.address, flush=True)
time.sleep(600)
"""
    host = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    *pids, address = host.stdout.readline().split()
    host.kill()
    host.wait()
    host.stdout.close()
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids))
    os.rmdir(os.path.dirname(address.removeprefix("unix:")))


def test_a_host_that_ends_without_stopping_prints_nothing():
    """The folder of the socket is removed."""
    program = """
from bridge.host.template import Template
template = Template.start(adapter="echo")
template.wait_ready(30)
client = template.connect()
print(template.pid, client.pid, template.address)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANG)
    assert (done.stderr, done.returncode) == ("", 0)
    *pids, address = done.stdout.split()
    wait_until(lambda: not any(is_running(int(pid)) for pid in pids))
    assert not os.path.exists(os.path.dirname(address.removeprefix("unix:")))


def test_many_clients_at_once(template):
    """No descriptor is left open."""
    before = len(os.listdir("/proc/self/fd"))

    def use():
        for _ in range(5):
            with template.connect() as client:
                assert client.call("ping")["status"] == "ok"

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: gc.collect() >= 0 and len(os.listdir("/proc/self/fd")) <= before)
