"""The schema of a store: its tables, the migrations between versions, and the rights that a worker needs."""

from __future__ import annotations

from typing import Any

import psycopg

from bridge import errors
from bridge.worker.stores.postgres.connection import SCHEMA, Connection, where

APPLICATION = "dspex-bridge"
MIGRATION_LOCK = 0x64737062  # "dspb": the key of the advisory lock

# The version of a store is the number of migrations that have run on it. Ids and names are UTF-8 as bytes: they are
# ordered alike in every database, whatever its encoding, and may contain zero bytes. A name may be longer than an
# entry of an index, which therefore has its digest.
#
# A row of `writers` stands for one worker: `connection` counts its connections, `last` is the number of its last
# transaction and `results` what that has returned. See writer.py.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE writers (
        id uuid PRIMARY KEY,
        number bigint GENERATED ALWAYS AS IDENTITY,
        connection integer NOT NULL,
        last bigint NOT NULL,
        results bigint[] NOT NULL
    );
    CREATE SEQUENCE epochs;
    CREATE TABLE sessions (
        number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        id bytea NOT NULL UNIQUE,
        epoch bigint NOT NULL,
        owner uuid NOT NULL,
        created_at text NOT NULL,
        ttl double precision NOT NULL,
        quota_records bigint,
        quota_bytes bigint
    );
    CREATE TABLE records (
        session bigint NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
        position bigint GENERATED ALWAYS AS IDENTITY,
        kind text NOT NULL,
        name bytea NOT NULL,
        value bytea NOT NULL
    );
    CREATE UNIQUE INDEX records_key ON records (session, kind, sha256(name));
    """,
)

RIGHTS = [
    *(
        (table, right)
        for table in ("sessions", "records", "writers")
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE")
    ),
    ("store", "SELECT"),
]


def prepare(connection: Connection) -> None:
    """Run the missing migrations in one transaction.

    Raises psycopg.Error, and StoreFailed if the schema belongs to another application or to a newer version, or if the
    role lacks a right.
    """
    try:
        if _version(connection) < len(MIGRATIONS):
            _migrate(connection)
        _check_rights(connection)
    except psycopg.errors.InsufficientPrivilege as error:
        raise _no_rights(connection, error.diag.message_primary or str(error)) from error


def _migrate(connection: Connection) -> None:
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        version = _version(connection)  # again: another worker may have migrated it meanwhile
        if not version and not _exists(connection):  # CREATE … IF NOT EXISTS needs the right even if it exists
            connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute(f"SET LOCAL search_path = {SCHEMA}, pg_catalog, pg_temp")  # where tables are created
        if not version:
            connection.execute("CREATE TABLE store (application text NOT NULL, version integer NOT NULL)")
            connection.execute("INSERT INTO store VALUES (%s, 0)", (APPLICATION,))
        for script in MIGRATIONS[version:]:
            for statement in script.split(";"):
                if statement.strip():
                    connection.execute(statement, prepare=False)
        if version < len(MIGRATIONS):
            connection.execute("UPDATE store SET version = %s", (len(MIGRATIONS),))


def _exists(connection: Connection) -> bool:
    return bool(connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (SCHEMA,)).fetchall())


def _version(connection: Connection) -> int:
    """Return the version of the store's schema; 0 if there is none.

    Raises StoreFailed for a schema of another application or a later version.
    """
    tables = {
        name
        for (name,) in connection.execute(
            "SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace WHERE nspname = %s",
            (SCHEMA,),
        )
    }
    if not tables:
        return 0
    try:
        if "store" not in tables:
            raise _foreign(connection)
        rows = connection.execute(f"SELECT application, version FROM {SCHEMA}.store").fetchall()
    except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable):
        raise _foreign(connection) from None
    if len(rows) != 1 or rows[0][0] != APPLICATION:
        raise _foreign(connection)
    version: Any = rows[0][1]
    if not isinstance(version, int) or version < 1:  # the table and the first version are made together
        raise _foreign(connection)
    if version > len(MIGRATIONS):
        raise errors.StoreFailed(
            f"the schema {SCHEMA} at {where(connection)} has version {version},"
            f" newer than this program's {len(MIGRATIONS)}"
        )
    return version


def _check_rights(connection: Connection) -> None:
    missing = connection.execute(
        "SELECT string_agg(wanted || ' on ' || name, ', ') FROM unnest(%s::text[], %s::text[]) AS need (name, wanted)"
        f" WHERE NOT has_table_privilege('{SCHEMA}.' || name, wanted)",
        ([name for name, _ in RIGHTS], [right for _, right in RIGHTS]),
    ).fetchone()
    if missing is not None and missing[0]:
        raise _no_rights(connection, f"it lacks {missing[0]}")
    usable = connection.execute(f"SELECT has_sequence_privilege('{SCHEMA}.epochs', 'USAGE')").fetchone()
    if usable is not None and not usable[0]:
        raise _no_rights(connection, "it lacks USAGE on the sequence epochs")


def _foreign(connection: Connection) -> errors.StoreFailed:
    return errors.StoreFailed(f"the schema {SCHEMA} at {where(connection)} is another application's")


def _no_rights(connection: Connection, reason: str) -> errors.StoreFailed:
    role = connection.info.user
    return errors.StoreFailed(
        f"the role {role!r} may not use the store at {where(connection)}: {' '.join(reason.split())}."
        f" Let the role own the schema: CREATE SCHEMA {SCHEMA} AUTHORIZATION …"
    )
