"""The changes of sessions as statements of SQL: each changes any number of sessions in one round trip.

A statement first locks the writer's row (see writer.py); without it, it changes nothing. Then it locks its sessions in
the order of their ids, so that the statements of several workers cannot wait for each other in a circle. A session that
another worker has taken by then is left out. The last part notes the results in the writer's row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from psycopg.types.numeric import Int8

from bridge.records import Changes, SessionSettings

CHANNEL = "dspex_bridge"  # of notifications: an epoch, and the session's id in hexadecimal


class Change(msgspec.Struct):
    """Represents the change of one session, for any of the statements. result: None if it was refused."""

    session_id: bytes
    epoch: int = 0
    records: Changes = {}
    settings: SessionSettings | None = None
    counted: str | None = None
    result: int | None = None


_BEGIN = """
WITH writer AS (
    SELECT id FROM writers WHERE id = %(writer)s AND connection = %(connection)s FOR UPDATE
), asked AS (
    SELECT * FROM unnest(%(ids)b::bytea[], %(epochs)b::bigint[], %(counted)b::text[])
        WITH ORDINALITY AS asked (id, epoch, counted, turn)
), settings AS (
    SELECT turn, created_at, ttl, nullif(records, -1) AS quota_records, nullif(bytes, -1) AS quota_bytes
    FROM unnest(%(settings)b::bigint[], %(created_at)b::text[], %(ttl)b::float8[], %(quota_records)b::bigint[],
        %(quota_bytes)b::bigint[]) AS settings (turn, created_at, ttl, records, bytes)
), """

_RECORDS = """, changed AS (
    SELECT owned.number, kind, name, value, is_removed, position
    FROM unnest(%(turns)b::bigint[], %(kinds)b::text[], %(names)b::bytea[], %(values)b::bytea[], %(removed)b::bool[])
        WITH ORDINALITY AS changed (turn, kind, name, value, is_removed, position)
    JOIN owned USING (turn)
), deleted AS (
    DELETE FROM records USING changed
    WHERE is_removed AND session = number AND records.kind = changed.kind
        AND sha256(records.name) = sha256(changed.name)
), written AS (
    INSERT INTO records (session, kind, name, value)
    SELECT number, kind, name, value FROM changed WHERE NOT is_removed ORDER BY position
    ON CONFLICT (session, kind, sha256(name)) DO UPDATE SET value = excluded.value
)"""

_END = """
UPDATE writers SET last = %(number)s,
    results = ARRAY(SELECT done.result FROM asked LEFT JOIN done USING (turn) ORDER BY turn)
FROM writer WHERE writers.id = writer.id
RETURNING results
"""

# The result is the new session's epoch.
CREATE = f"""{_BEGIN} created AS (
    INSERT INTO sessions (id, epoch, owner, created_at, ttl, quota_records, quota_bytes)
    SELECT asked.id, nextval('epochs'), writer.id, created_at, ttl, quota_records, quota_bytes
    FROM asked JOIN settings USING (turn) CROSS JOIN writer ORDER BY asked.id
    ON CONFLICT (id) DO NOTHING
    RETURNING number, id, epoch
), owned AS (
    SELECT turn, number, created.epoch FROM created JOIN asked USING (id)
){_RECORDS}, done AS (
    SELECT turn, epoch AS result FROM owned
){_END}"""

# The result is the number of the session's row.
WRITE = f"""{_BEGIN} owned AS (
    SELECT turn, number FROM asked JOIN sessions USING (id, epoch) JOIN writer ON writer.id = owner
    ORDER BY asked.id FOR SHARE OF sessions
){_RECORDS}, configured AS (
    UPDATE sessions SET created_at = settings.created_at, ttl = settings.ttl,
        quota_records = settings.quota_records, quota_bytes = settings.quota_bytes
    FROM settings JOIN owned USING (turn) WHERE sessions.number = owned.number
), done AS (
    SELECT turn, number AS result FROM owned
){_END}"""

# The result is the new epoch. An earlier owner is told.
TAKE = f"""{_BEGIN} found AS (
    SELECT turn, number, owner AS before FROM asked JOIN sessions USING (id) CROSS JOIN writer
    ORDER BY asked.id FOR UPDATE OF sessions
), taken AS (
    UPDATE sessions SET epoch = nextval('epochs'), owner = writer.id
    FROM found CROSS JOIN writer WHERE sessions.number = found.number
    RETURNING turn, sessions.id, epoch, owner, before
), done AS (
    SELECT turn, epoch AS result,
        CASE WHEN before <> owner THEN pg_notify('{CHANNEL}', epoch || ' ' || encode(id, 'hex'))::text END
    FROM taken
){_END}"""

# The result is the number of counted records that the session had. Its owner is told.
DROP = f"""{_BEGIN} found AS (
    SELECT turn, number FROM asked JOIN sessions USING (id) CROSS JOIN writer
    ORDER BY asked.id FOR UPDATE OF sessions
), dropped AS (
    DELETE FROM sessions USING found CROSS JOIN writer WHERE sessions.number = found.number
    RETURNING turn, sessions.number, sessions.id, owner, writer.id AS writer
), done AS (
    SELECT turn, (SELECT count(*) FROM records WHERE session = number AND kind = counted) AS result,
        CASE WHEN owner <> writer THEN
            pg_notify('{CHANNEL}', nextval('epochs') || ' ' || encode(dropped.id, 'hex'))::text END
    FROM dropped JOIN asked USING (turn)
){_END}"""


def arguments(changes: Sequence[Change]) -> dict[str, Any]:
    """Return the arguments of a statement that makes these changes, each of another session."""
    columns: dict[str, list[Any]] = {
        "ids": [change.session_id for change in changes],
        "epochs": [Int8(change.epoch) for change in changes],
        "counted": [change.counted or "" for change in changes],
        **{name: [] for name in ("settings", "created_at", "ttl", "quota_records", "quota_bytes")},
        **{name: [] for name in ("turns", "kinds", "names", "values", "removed")},
    }
    for turn, change in enumerate(changes, 1):
        if change.settings is not None:
            quota = change.settings.quota
            columns["settings"].append(Int8(turn))
            columns["created_at"].append(change.settings.created_at)
            columns["ttl"].append(float(change.settings.ttl))
            columns["quota_records"].append(_limit(quota.records))
            columns["quota_bytes"].append(_limit(quota.bytes))
        for (kind, name), value in change.records.items():
            columns["turns"].append(Int8(turn))
            columns["kinds"].append(kind)
            columns["names"].append(name.encode())
            columns["values"].append(value or b"")
            columns["removed"].append(value is None)
    return columns


def _limit(limit: int | None) -> Int8:
    return Int8(-1 if limit is None else limit)
