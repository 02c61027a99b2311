"""Two PostgreSQL servers, one the standby of the other, handled by the commands of docs/operations.md."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path

from postgres_server import PostgresServer

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
SETTINGS = {"wal_keep_size": "256MB", "wal_retrieve_retry_interval": "200ms"}  # as the page says
HEADING = "## A standby of the PostgreSQL server\n"


class ServerPair:
    """A primary and its synchronous standby. As a context manager, both are started, and removed at the end."""

    def __init__(self) -> None:
        section = PAGE.read_text().partition(HEADING)[2].partition("\n## ")[0]
        self._copy, self._wait, self._promote, self._rewind = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
        self._stack = ExitStack()

    def __enter__(self) -> ServerPair:
        with self._stack:
            self.primary = self._stack.enter_context(PostgresServer(fsync=False, **SETTINGS))
            self.standby = PostgresServer()
            self._stack.callback(self.standby.close)
            self._hosts = f"{self.primary.folder},{self.standby.folder}"
            self._run(self._copy, self.standby)
            self._follow()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def url(self, database: str) -> str:
        """Return the URL that workers use: it names both servers, in an order that a fail-over does not change."""
        return self.primary.url(database, host=self._hosts)

    def fail_over(self) -> None:
        """Kill the primary, and make the standby the primary."""
        self.primary.kill()
        self._run(self._promote, self.standby)
        self.primary, self.standby = self.standby, self.primary

    def rejoin(self) -> None:
        """Start the old primary, which has ended, as the standby of the new one."""
        self._run(self._rewind, self.standby)
        self._follow()

    def wait_until_equal(self) -> None:
        """Wait until the standby has all that the primary has."""
        position = self.primary.execute("SELECT pg_current_wal_lsn()::text")[0][0]
        while not self.standby.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position)[0][0]:
            time.sleep(0.01)

    def _follow(self) -> None:
        self.standby.start()
        self._run(self._wait, self.primary)
        while ("sync",) not in self.primary.execute("SELECT sync_state FROM pg_stat_replication"):
            time.sleep(0.01)
        self.wait_until_equal()  # also with what was acknowledged before that

    def _run(self, script: str, where: PostgresServer) -> None:
        names = {"PRIMARY": self.primary, "STANDBY": self.standby}
        variables = {name: f"host={server.folder} user=postgres" for name, server in names.items()}
        where.run("sh", "-ec", script, DATA=str(where.data), **variables)
