"""Real PostgreSQL servers in temporary folders, reached at a Unix socket and, if asked for, by TCP on loopback.

    with PostgresServer() as server:
        store = open_store(server.url())

A server runs as another user if the tests are root, which PostgreSQL refuses. It ends with the thread that started it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import psycopg

PASSWORD = "Kp7-only-for-tests"  # asked for by TCP
OWNER = "postgres"  # the superuser of the server, and the user of the system if the tests are root
PROGRAMS = ("initdb", "postgres", "pg_basebackup", "pg_rewind")
MISSING = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
START = 60.0  # seconds
SETTINGS = {
    "shared_buffers": "16MB",
    "max_connections": "200",
    "log_checkpoints": "off",
    "password_encryption": "scram-sha-256",
}

_names = itertools.count(1)


def bin_folder() -> Path | None:
    """Return where the server's programs are: what `pg_config` says, else Debian's newest. None: nowhere."""
    found = []
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found.append(Path(subprocess.check_output(["pg_config", "--bindir"], text=True).strip()))
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    return next((path for path in found if all((path / name).exists() for name in PROGRAMS)), None)


def is_installed() -> bool:
    """Return whether servers can be started."""
    return bin_folder() is not None and shutil.which("setpriv") is not None


class PostgresServer:
    """A server with its own folder. As a context manager, it is created, started and removed.

    tcp: listen on loopback as well, where PASSWORD is asked for. fsync: False is faster, and survives whatever the
    machine does. settings: parameters of the server. parent: where its folder is made; others must be able to enter it.
    """

    def __init__(self, *, tcp: bool = False, fsync: bool = True, parent: str = "/tmp", **settings: str) -> None:
        programs = bin_folder()
        assert programs is not None, MISSING
        self._programs = programs
        self._user = _other_user() if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port() if tcp else 5432  # also in the name of the Unix socket
        self._listens = "127.0.0.1" if tcp else ""
        self._settings = {**SETTINGS, "fsync": "on" if fsync else "off", **settings}
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))  # short: paths of sockets have 107 bytes
        self.data = self.folder / "data"
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)

    def __enter__(self) -> PostgresServer:
        self.create()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def url(self, database: str = OWNER, user: str = OWNER, *, tcp: bool = False, **parameters: str) -> str:
        """Return the URL of a database at the Unix socket, or by TCP."""
        place = f"127.0.0.1:{self.port}" if tcp else ""
        if not tcp:
            parameters = {"host": str(self.folder), "port": str(self.port), **parameters}
        return f"postgresql://{quote(user)}@{place}/{quote(database)}?{urlencode(parameters)}".rstrip("?")

    @property
    def pid(self) -> int:
        """Return the process id of the postmaster."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Return what the server has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def execute(self, sql: str, *args: Any, database: str = OWNER) -> list[tuple[Any, ...]]:
        """Run a statement as the superuser, in its own transaction. Return its rows."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(sql, args or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"test_{os.getpid()}_{next(_names)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def drop_database(self, name: str) -> None:
        """Delete a database with its connections."""
        self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def disconnect(self, database: str) -> int:
        """End all connections to a database by pg_terminate_backend. Return how many there were."""
        sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
        return int(self.execute(sql, database, 0)[0][0])

    def configure(self, **settings: str) -> None:
        """Change parameters of the running server, those that need no restart."""
        for name, value in settings.items():
            self.execute(f"ALTER SYSTEM SET {name} = '{value}'")
        self.execute("SELECT pg_reload_conf()")

    # Its life

    def create(self) -> None:
        """Create the files of the server."""
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        ways = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
        kind = ["--encoding=UTF8", "--locale=C", "--data-checksums", "--no-sync"]
        self.run("initdb", f"--pgdata={self.data}", f"--username={OWNER}", *ways, *kind)
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in self._settings.items())

    def start(self) -> None:
        """Start the server, and wait until it takes connections."""
        # In the command, because the file is also that of the standbys.
        place = ["-k", str(self.folder), "-p", str(self.port), "-c", f"listen_addresses={self._listens}"]
        command = ["postgres", "-D", str(self.data), *place]
        with (self.folder / "log").open("ab") as log:
            # SIGQUIT ends a server at once, with its children.
            self._process = self._popen("--pdeathsig", "QUIT", *command, stdout=log, stderr=log)
        deadline = time.monotonic() + START
        while self._state() not in ("ready", "standby"):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {self.log[-2000:]}")
            time.sleep(0.01)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `smart` waits for clients, `fast` disconnects them, `immediate` is a crash of its own."""
        self._end(self.pid, {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill the server and all its processes by SIGKILL, if it runs."""
        if not self.is_running:
            return
        children = self._signal(signal.SIGSTOP)  # so that it cannot start others meanwhile
        self._end(self.pid, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        while any(map(_is_running, children)):
            time.sleep(0.001)

    def freeze(self) -> None:
        """Stop all processes of the server by SIGSTOP: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Continue after `freeze`."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """End the server, and remove its files."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, **environment: str) -> None:
        """Run a command, as one of PostgreSQL's, as the user of the server. Raises RuntimeError with its output."""
        with tempfile.TemporaryFile() as output:
            if self._popen(*command, environment=environment, stdout=output, stderr=output).wait() != 0:
                output.seek(0)
                raise RuntimeError(f"{command[0]}: {output.read().decode(errors='replace')}")

    # Replication

    def standby(self, name: str = "standby") -> PostgresServer:
        """Return a started standby of this server, a copy of it that follows it by streaming replication.

        name: what `synchronous_standby_names` of this server may say.
        """
        other = PostgresServer(parent=str(self.folder.parent))
        self.run(
            *("pg_basebackup", f"--pgdata={other.data}", f"--dbname={self.url(application_name=name)}"),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )
        other.start()
        return other

    def _popen(
        self, *command: str, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen[bytes]:
        user = self._user
        as_user = [] if user is None else [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        own = {"PATH": f"{self._programs}:{os.environ['PATH']}", "LC_ALL": "C", "HOME": str(self.folder)}
        options |= {"stdin": subprocess.DEVNULL, "cwd": self.folder, "env": {**own, **(environment or {})}}
        return subprocess.Popen(["setpriv", *as_user, *command], **options)

    def _state(self) -> str:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return ""
        return lines[7].strip() if len(lines) > 7 and lines[0] == str(self.pid) else ""

    def _signal(self, number: int) -> list[int]:
        """Send a signal to the postmaster, then to its children. Return these."""
        os.kill(self.pid, number)
        children = [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)
        return children

    def _end(self, pid: int, number: int) -> None:
        assert self._process is not None
        os.kill(pid, number)
        self._process.wait()


def _other_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(OWNER)
    except KeyError:
        return pwd.getpwnam("nobody")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie, whose memory is released."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
