"""Runs what an image would run: as process 1, with a read-only root, no network and no user of that number."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peer import DEADLINE, Host, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
SUPPORT = Path(__file__).parent
SOCKET = "/run/bridge/bridge.sock"
SYSTEM = "/usr/local/bin:/usr/bin:/bin"
SHM_BYTES = 65536
# What a process needs of this machine, in place of the image's: the system, the interpreter, and the environment.
PLACES = {place: place for place in (sys.base_prefix, sys.prefix, str(SUPPORT))}


class Image:
    """What the last stage of a Dockerfile says."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"\\\n", " ", path.read_text())
        stage = re.split(r"^FROM ", text, flags=re.MULTILINE)[-1]
        said = dict(re.findall(r"^([A-Z]+) +(.*)$", stage, re.MULTILINE))
        self.entrypoint: list[str] = json.loads(said["ENTRYPOINT"])
        self.command: list[str] = json.loads(said["CMD"])
        flags, _, check = said["HEALTHCHECK"].partition(" CMD ")
        self.check: list[str] = json.loads(check)
        self.check_flags = dict(flag.removeprefix("--").split("=") for flag in flags.split())
        self.user = said["USER"].split(":")
        self.stop_signal = said.get("STOPSIGNAL", "SIGTERM")
        self.env = {"PATH": SYSTEM, **dict(word.split("=", 1) for word in shlex.split(said["ENV"]))}
        self.env["PATH"] = self.env["PATH"].replace("$PATH", SYSTEM)


def why_not() -> str | None:
    """Return why containers cannot run here; None if they can."""
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed (Debian: apt-get install bubblewrap)"
    done = subprocess.run(["bwrap", *_confined(), "--", "true"], capture_output=True, text=True)
    return f"bubblewrap does not work here: {done.stderr.strip()}" if done.returncode else None


class Container:
    """A running image.

    env: variables besides the image's. stdin: whether it is open, and empty. folder: what is mounted at /run/bridge;
    None: a new one. places: what else of this machine is to be seen there, by its place. network: whether it has one.
    """

    def __init__(
        self,
        image: Image,
        *flags: str,
        env: Mapping[str, str] | None = None,
        stdin: bool = True,
        folder: str | None = None,
        places: Mapping[str, str] | None = None,
        network: bool = False,
    ) -> None:
        self.image = image
        self.connections: list[Host] = []
        self.folder = folder or tempfile.mkdtemp(prefix="bridge-")  # not pytest's, whose path is too long for a socket
        self.path = os.path.join(self.folder, os.path.basename(SOCKET))
        command = [
            "bwrap",
            *_confined(*image.user, places=places or {}),
            "--bind",
            self.folder,
            os.path.dirname(SOCKET),
        ]
        command += ["--share-net"] if network else []
        for name, value in {**image.env, "PYTHONPATH": str(SUPPORT), **(env or {})}.items():
            command += ["--setenv", name, value]
        read_fd, write_fd = os.pipe()
        command += ["--info-fd", str(write_fd), "--", *image.entrypoint, *(flags or image.command)]
        if not stdin:
            command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
        null = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdin=null, stdout=null, stderr=subprocess.PIPE, pass_fds=[write_fd])
        os.close(write_fd)
        with os.fdopen(read_fd) as info:
            self.pid: int = json.load(info)["child-pid"]

    def is_healthy(self) -> bool:
        """Return whether the check of the image succeeds."""
        return self.run(*self.image.check).returncode == 0

    def wait_until_ready(self) -> Container:
        wait_until(lambda: self.is_healthy() or self.process.poll() is not None, 2 * DEADLINE)
        assert self.process.poll() is None, self.stderr()
        return self

    def connect(self) -> Host:
        self.connections.append(Host.connected(self.path))
        return self.connections[-1]

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside, as `docker exec` and probes do."""
        inside = ["nsenter", "--preserve-credentials", "-U", "-m", "-p", "-n", "-i", "-r", "-t", str(self.pid)]
        return subprocess.run([*inside, *command], env=self.image.env, capture_output=True, text=True, timeout=DEADLINE)

    def children(self) -> list[Any]:
        """Return the state and the name of each process inside but the first."""
        listing = self.run("ps", "-e", "-o", "pid=,stat=,comm=").stdout
        processes = [line.split(None, 2) for line in listing.splitlines()]
        return [(state[0], name) for pid, state, name in processes if pid != "1" and name != "ps"]

    def stop(self, seconds: float) -> int:
        """Send the signal that stops the image, and return the exit status. Fail if it takes longer than `seconds`."""
        os.kill(self.pid, signal.Signals[self.image.stop_signal])
        return self.process.wait(seconds)

    def stderr(self) -> str:
        """Return what the container has written to stderr until its end."""
        return self.process.communicate(timeout=DEADLINE)[1].decode()

    def finish(self) -> None:
        """End the container, whatever the test did."""
        for host in self.connections:
            with contextlib.suppress(OSError):
                host.close()
        self.process.kill()  # bubblewrap, and with it what is inside
        self.process.communicate()
        shutil.rmtree(self.folder, ignore_errors=True)


def _confined(user: str = "10001", group: str = "10001", *, places: Mapping[str, str] | None = None) -> list[str]:
    words = ["--unshare-all", "--uid", user, "--gid", group, "--cap-drop", "ALL", "--die-with-parent", "--as-pid-1"]
    words += ["--clearenv", "--tmpfs", "/", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "lib", "lib64"):
        words += ["--symlink", f"usr/{name}", f"/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]
    words += ["--size", str(SHM_BYTES), "--tmpfs", "/dev/shm"]
    for place, source in {**PLACES, **(places or {})}.items():
        words += ["--ro-bind", source, place]
    return [*words, "--symlink", sys.prefix, "/opt/bridge", "--dir", "/run/bridge", "--remount-ro", "/"]
