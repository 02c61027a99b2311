"""The image of a server of workers, run as a container would run it: process 1, a read-only root, no network, a user
without name or home, 64 KiB of shared memory."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

import container
from bridge import Client
from bridge.health import Unhealthy, check
from container import DEPLOY, Container, Image
from peer import DEADLINE, wait_until

IMAGE = Image(DEPLOY / "Dockerfile")
ECHO = (*IMAGE.command, "--adapter", "echo")
STOP_SECONDS = 30  # `stop_grace_period` of compose.yaml
SIGNATURE = {"inputs": [{"name": "question"}, {"name": "passage"}], "outputs": [{"name": "answer"}]}
INPUTS = {"question": "Where is the Louvre?", "passage": "The Louvre is in Paris."}
REASON = container.why_not()

pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def start():
    """Return a function that starts containers, which end after the test."""
    started = []

    def run(*flags, **options):
        started.append(Container(IMAGE, *flags, **options))
        return started[-1].wait_until_ready()

    yield run
    for each in started:
        each.finish()


@pytest.mark.parametrize("options", [{}, {"stdin": False, "env": {"HOME": "/nowhere", "TMPDIR": "/nowhere"}}])
def test_a_program_runs(start, options):
    """Also if stdin is closed, and the folders for files of users do not exist. Nothing is left when it stops."""
    served = start(**options)
    assert served.run("id", "--user", "--name").stderr.strip() == "id: cannot find name for user ID 10001"
    with Client.connect(f"unix:{served.path}") as client:
        client.call("configure_lm", {"provider": "offline"})
        client.call("create_program", {"id": "qa", "signature": SIGNATURE})
        result = client.call("execute_program", {"program_id": "qa", "inputs": INPUTS})
    assert result["outputs"] == {"answer": "Paris"}
    assert served.stop(STOP_SECONDS) == 0
    assert os.listdir(served.folder) == []
    (line,) = served.stderr().splitlines()
    assert line.startswith(f"dspex-bridge: listening on unix:{container.SOCKET} with the adapter dspy; process 1,")


def test_the_check_of_the_image(start):
    """It fails when the server hangs, and when it has stopped."""
    served = start(*ECHO)
    assert served.run(*IMAGE.check).returncode == 0
    os.kill(served.pid, signal.SIGSTOP)
    failed = served.run(*IMAGE.check)
    os.kill(served.pid, signal.SIGCONT)
    assert (failed.returncode, failed.stderr) == (
        1,
        f"dspex-bridge health: unix:{container.SOCKET}: no answer within 2 s\n",
    )
    assert served.stop(STOP_SECONDS) == 0
    with pytest.raises(Unhealthy, match="No such file"):
        check(served.path, DEADLINE)


def test_open_calls_are_answered_when_it_stops(start):
    """It accepts no others, and ends when the last connection has ended."""
    served = start(*ECHO)
    host = served.connect()
    assert host.call("ping")["success"]
    host.send({"id": 1, "command": "sleep", "args": {"seconds": 0.5}})
    os.kill(served.pid, signal.SIGTERM)
    wait_until(lambda: not os.path.exists(served.path))
    assert host.receive()["result"] == {"slept": 0.5}
    assert host.call("ping")["success"]
    host.close()
    assert served.process.wait(STOP_SECONDS) == 0


def test_a_call_that_takes_too_long_does_not_keep_it_from_stopping(start):
    """It has --drain and --grace, which the time to stop of the container has to exceed."""
    served = start(*ECHO, "--drain", "1", "--grace", "0.2")
    host = served.connect()
    host.send({"id": 1, "command": "sleep", "args": {"seconds": 600}})
    assert host.call("ping", request_id=2)["success"]
    assert served.stop(STOP_SECONDS) == 0
    assert host.receive_frame() is None


def test_no_zombies_are_left(start):
    """The first process inherits orphans, and removes them when they end."""
    served = start(*IMAGE.command, "--adapter", "processes:adapter")
    host = served.connect()
    for _ in range(3):
        assert host.call("orphan")["success"]
    host.close()
    wait_until(lambda: [name for _, name in served.children()] == ["bridge-beside"])


def test_the_end_of_the_first_process_ends_all(start):
    """A worker would otherwise go on until its connection ends."""
    served = start(*ECHO)
    host = served.connect()
    assert host.call("ping")["success"]
    os.kill(served.pid, signal.SIGKILL)
    assert host.receive_frame() is None
    assert served.process.wait(DEADLINE) == 128 + signal.SIGKILL


def test_a_new_container_takes_over_the_socket_of_one_that_was_killed(start):
    """The volume outlives the container, with the socket in it."""
    first = start(*ECHO)
    os.kill(first.pid, signal.SIGKILL)
    first.process.wait(DEADLINE)
    assert os.path.exists(first.path)
    second = Container(IMAGE, *ECHO, folder=first.folder)
    try:
        assert second.wait_until_ready().connect().call("ping")["success"]
    finally:
        second.finish()


def test_log_lines_are_json_on_stderr(start):
    """Each but the one that reports that the server is ready."""
    served = start(*ECHO, "--log-level", "DEBUG")
    host = served.connect()
    assert host.call("ping")["success"]
    host.close()
    assert served.stop(STOP_SECONDS) == 0
    first, *lines = served.stderr().splitlines()
    assert first.startswith("dspex-bridge: listening")
    messages = [json.loads(line)["message"] for line in lines]
    assert re.fullmatch(r"worker \d+ has started; 1 run", messages[0])
    assert messages[-1] == "the template ends: its last worker has ended"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--store", "sqlite:/var/lib/none/db"], "/var/lib/none/db"),
        (["--adapter", "none:adapter"], "none"),
        (["--max-workers", "0"], "--max-workers"),
    ],
)
def test_a_wrong_setting_ends_it_with_one_line(flags, reason):
    """A container that restarts for ever should at least say why."""
    served = Container(IMAGE, *ECHO, *flags)
    try:
        assert served.process.wait(2 * DEADLINE) == 2
        line = served.stderr().splitlines()[-1]
        assert line.startswith("dspex-bridge serve: error: ")
        assert reason in line
    finally:
        served.finish()
