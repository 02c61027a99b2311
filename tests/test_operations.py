"""docs/operations.md: the unit file is valid, and what it runs works as described."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bridge import Client, errors

PAGE = Path(__file__).parents[1] / "docs" / "operations.md"
SYSTEMD = shutil.which("systemd-analyze")


def block(language):
    """Return the one block of that language in the page."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return text


def command_of_unit():
    text = block("ini").replace("\\\n", " ")
    (line,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return shlex.split(line)


@pytest.fixture
def folder():
    """Return a folder whose path is short enough for a socket."""
    path = tempfile.mkdtemp(prefix="bridge-")
    yield Path(path)
    shutil.rmtree(path)


@pytest.fixture
def start(folder):
    """Return a function that runs a command of the page in `folder`, and returns the process once it is ready."""
    started = []

    def run(command):
        words = [word.replace("/run/bridge", str(folder)).replace("/var/lib/bridge", str(folder)) for word in command]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
            name = folder / f"notify{len(started)}"
            notified.bind(str(name))
            notified.settimeout(60)
            environment = {"NOTIFY_SOCKET": str(name), "PATH": "/usr/bin:/bin"}
            started.append(subprocess.Popen([sys.executable, *words[1:]], env=environment, stderr=subprocess.DEVNULL))
            assert notified.recv(100) == b"READY=1"
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(SYSTEMD is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(folder):
    """Without a warning, whichever paths the machine has."""
    unit = folder / "dspex-bridge@a.service"
    unit.write_text(block("ini").replace("/opt/bridge/bin/python", sys.executable))
    done = subprocess.run([SYSTEMD, "verify", "--man=no", unit], capture_output=True, text=True, timeout=60)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if unit.name in line]
    assert complaints == []


def test_the_time_to_stop_is_longer_than_the_time_to_drain():
    unit = dict(line.split("=", 1) for line in block("ini").splitlines() if "=" in line)
    command = command_of_unit()
    drain = float(command[command.index("--drain") + 1])
    assert float(unit["TimeoutStopSec"]) > drain + 2
    assert (unit["KillMode"], unit["Type"], unit["RuntimeDirectoryPreserve"]) == ("mixed", "notify", "yes")


def test_a_second_instance_replaces_the_first(start, folder):
    """Connections go on, new ones reach the second, and durable sessions are there."""
    path = f"unix:{folder}/bridge.sock"
    first = start(command_of_unit())
    with Client.connect(path) as old:
        old.call("create_session", {"session_id": "s", "durable": True})
        old.call("update_session_data", {"key": "k", "value": 1}, session_id="s")
        start(command_of_unit())
        first.send_signal(signal.SIGTERM)
        assert old.call("ping")["status"] == "ok"
        with Client.connect(path) as new:
            assert new.call("get_session_data", session_id="s")["data"] == {"k": 1}
            with pytest.raises(errors.SessionLost):
                old.call("get_session_data", session_id="s")
    assert first.wait(30) == 0
    with Client.connect(path) as client:
        assert client.call("ping")["status"] == "ok"
