"""The Elixir application of deploy/ as a release, with the server of workers beside it and PostgreSQL."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest
import yaml

import container
from container import DEPLOY, Container, Image
from peer import DEADLINE, wait_until

SERVER = Image(DEPLOY / "Dockerfile")
APPLICATION = Image(DEPLOY / "elixir" / "Dockerfile")
SERVICES = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
STOP_SECONDS = 20  # `stop_grace_period` of the application
REASON = container.why_not() or (None if shutil.which("mix") else "Elixir is not installed")
REQUEST = """
import sys, urllib.error, urllib.request
path, *body = sys.argv[1:]
try:
    reply = urllib.request.urlopen("http://127.0.0.1:8080" + path, body[0].encode() if body else None, timeout=20)
except urllib.error.HTTPError as error:
    reply = error
print(reply.status, reply.read().decode())
"""

pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """Return the folder of the release, from what `make lint` may have compiled."""
    folder = tmp_path_factory.mktemp("release")
    env = {**os.environ, "MIX_ENV": "prod", "MIX_BUILD_PATH": str(DEPLOY.parent / "build" / "answers")}
    command = ["mix", "release", "--path", str(folder / "answers")]
    done = subprocess.run(command, cwd=DEPLOY / "elixir", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(folder / "answers")


@pytest.fixture
def containers():
    """Return a function that starts containers, which end after the test."""
    started = []

    def start(image, *flags, **options):
        started.append(Container(image, *flags, **options))
        return started[-1].wait_until_ready()

    yield start
    for each in reversed(started):
        each.finish()


def ask(application, *words):
    """Return the status and the text of the reply to a request from inside."""
    done = application.run(sys.executable, "-c", REQUEST, *words)
    status, text = done.stdout.split(" ", 1)
    return int(status), text.strip()


@pytest.mark.timeout(600)
def test_sessions_outlive_the_server_of_workers(release, containers, postgres, database):
    """As in compose.yaml: the server is killed, and another one starts on the same volume."""
    from postgres_server import OWNER, PASSWORD

    place = f"postgresql://{OWNER}@127.0.0.1:{postgres.port}/{database}"
    flags = [flag.replace("postgresql://bridge@postgres/bridge", place) for flag in SERVICES["bridge"]["command"]]
    settings = {"env": {"PGPASSWORD": PASSWORD}, "network": True}
    bridge = containers(SERVER, *flags, **settings)
    application = containers(
        APPLICATION,
        env=SERVICES["application"]["environment"],
        folder=bridge.folder,
        places={"/opt/answers": release},
    )
    assert ask(application, "/alive") == (200, "alive")
    assert ask(application, "/sessions/ann") == (404, "nothing was asked")
    assert ask(application, "/sessions/ann?Where+is+the+Louvre%3F", "The Louvre is in Paris.") == (200, "Paris")
    assert ask(application, "/sessions/ann", "A passage without a question.") == (404, "not found")
    assert PASSWORD not in bridge.run("ps", "-e", "-o", "args").stdout

    os.kill(bridge.pid, signal.SIGKILL)
    bridge.process.wait(DEADLINE)
    wait_until(lambda: not application.is_healthy())
    containers(SERVER, *flags, folder=bridge.folder, **settings)
    wait_until(application.is_healthy)
    assert ask(application, "/sessions/ann") == (200, "Where is the Louvre?")
    assert application.stop(STOP_SECONDS) == 0
