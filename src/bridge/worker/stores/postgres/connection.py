"""Connections to the server: how they are made and set up, when they count as lost, and their errors."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

import psycopg

from bridge import errors

SCHEMA = "dspex_bridge"
OLDEST = 130_000  # PostgreSQL 13
REPLY_TIMEOUT = 15.0  # seconds without a reply after which a connection counts as lost
LOCK_TIMEOUT = 10.0  # seconds to wait for a lock that something else holds

# Of this session only. A store acknowledges what the server's disk has, whatever the default of the database is; and
# each statement has to see what was committed before it began.
SETTINGS = {
    "search_path": f"pg_catalog, {SCHEMA}, pg_temp",
    "default_transaction_isolation": "read committed",
    "lock_timeout": f"{LOCK_TIMEOUT * 1000:.0f}",
    "idle_in_transaction_session_timeout": "0",  # it could end a migration
    "extra_float_digits": "1",  # less would round the numbers that are read
    "plan_cache_mode": "force_generic_plan",
}

# Apart from the others and before them, because it could end the statement that sets them; later, it could end the wait
# for a synchronous replica, which counts as success.
NO_STATEMENT_TIMEOUT = "SET statement_timeout = 0"

# Of servers of these versions and later: connections are used for as long as a worker lives.
LATER_SETTINGS = {140_000: {"idle_session_timeout": "0"}, 170_000: {"transaction_timeout": "0"}}

# Errors that a smaller transaction could avoid: those of the data, and of the server's memory for them.
OF_ONE_CHANGE = ("22", "23", "54")  # classes of SQLSTATE


class Unreachable(errors.StoreFailed):
    """Raised if the server cannot be reached, or the connection to it was lost."""

    @classmethod
    def of(cls, error: psycopg.Error) -> Unreachable:
        return cls(f"the store cannot be reached: {text(error)}")


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that is lost when nothing can be sent to the server or read from it for REPLY_TIMEOUT."""

    def wait(self, gen: Generator[Any, Any, Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(self._limited(gen), interval)

    def _limited(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        deadline = time.monotonic() + REPLY_TIMEOUT
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if ready:
                    deadline = time.monotonic() + REPLY_TIMEOUT
                elif time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server did not reply within {REPLY_TIMEOUT:g} s")
                wanted = gen.send(ready)
        except StopIteration as result:
            return result.value

    @property
    def is_lost(self) -> bool:
        """Return whether the server has closed the connection. Only for the thread that uses it."""
        if self.closed:
            return True
        try:
            while wait_readable([self.fileno()], 0):
                self.pgconn.consume_input()
        except psycopg.Error:
            return True
        return False


Connect = Callable[[], Connection]


def connect(conninfo: str) -> Connection:
    """Return a new connection in autocommit mode with SETTINGS. Raises psycopg.Error, StoreFailed."""
    connection = Connection.connect(conninfo, autocommit=True, prepare_threshold=0)
    try:
        _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: Connection) -> None:
    version = connection.info.server_version
    if version < OLDEST:
        raise errors.StoreFailed(f"the store needs PostgreSQL {OLDEST // 10_000} or later, not {version // 10_000}")
    settings = dict(SETTINGS)
    for since, more in LATER_SETTINGS.items():
        if version >= since:
            settings |= more
    cursor = connection.execute(
        f"{NO_STATEMENT_TIMEOUT}; SELECT pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',"
        " current_setting('synchronous_commit'), "
        + ", ".join(f"set_config('{name}', '{value}', false)" for name, value in settings.items()),
        prepare=False,
    )
    cursor.nextset()
    is_replica, is_read_only, synchronous = cursor.fetchone()[:3]  # type: ignore[index]  # there is always one row
    if is_replica:
        raise errors.StoreFailed(
            f"the server at {where(connection)} is a read-only replica: name the primary, or name all servers and add"
            " target_session_attrs=read-write to the URL"
        )
    if is_read_only:
        raise errors.StoreFailed(
            f"the database at {where(connection)} is read-only (default_transaction_read_only is on)"
        )
    if synchronous not in ("on", "remote_apply"):
        connection.execute("SET synchronous_commit = 'on'", prepare=False)


def wait_readable(descriptors: Sequence[int], timeout: int | None) -> bool:
    """Wait until one of the descriptors can be read from; timeout: in ms. Return whether one can."""
    poll = select.poll()  # unlike select.select, for any number of open files
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout))


def where(connection: Connection) -> str:
    """Return the server and the database of a connection, as text for an error."""
    info = connection.info
    return f"{info.host or 'the default host'}:{info.port}/{info.dbname}"


def was_lost(connection: Connection, error: Exception) -> bool:
    """Return whether `error` means that the connection has ended: then the outcome of what it did is unknown."""
    if connection.closed:
        return True
    # The connection ends after these, but libpq may not have noticed yet.
    return isinstance(error, psycopg.Error) and error.diag.severity_nonlocalized in ("FATAL", "PANIC")


def affects_all(error: Exception) -> bool:
    """Return whether `error`, of a group of changes or reads, would occur for each of them alone as well."""
    if isinstance(error, psycopg.Error):
        return (error.sqlstate or "")[:2] not in OF_ONE_CHANGE
    return isinstance(error, errors.StoreFailed)


def failure(error: Exception) -> errors.StoreFailed:
    """Return the error that callers get for an error of a change."""
    if isinstance(error, errors.StoreFailed):
        return error
    if isinstance(error, psycopg.Error):
        return errors.StoreFailed(f"the store failed: {text(error)}")
    return errors.OutcomeUnknown.of(f"{error}")  # an interrupted transaction, for instance


def text(error: psycopg.Error) -> str:
    """Return an error of the database in one line."""
    return " ".join((error.diag.message_primary or str(error)).split())[:500]
