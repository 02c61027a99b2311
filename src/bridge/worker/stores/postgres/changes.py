"""The changes of sessions as statements of SQL: each changes any number of sessions, in one round trip.

A statement locks the writer's row (see writer.py) and its sessions, these in the order of their ids, so that the
statements of several workers cannot wait for each other in a circle. A session that another worker has taken by then is
left out, and so are all of them if the writer's row is not as expected. `done` has the turn of each session that was
changed, and a number; the end of the statement notes them in the writer's row, and returns them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import msgspec
from psycopg.types.numeric import Int8

from bridge.records import Changes, SessionSettings

CHANNEL = "dspex_bridge"  # of notifications: an epoch, and the session's id in hexadecimal

Statement = tuple[str, dict[str, Any]]  # and its arguments


class Change(msgspec.Struct):
    """Represents the change of one session. result: the number that the statement returns for it; None: refused."""

    session_id: bytes
    epoch: int = 0
    records: Changes = {}
    settings: SessionSettings | None = None
    counted: str | None = None
    result: int | None = None

    @property
    def size(self) -> int:
        """Return the bytes of the values that it writes."""
        return sum(len(value) for value in self.records.values() if value is not None)


_WRITER = "writers.id = %(writer)s AND connection = %(connection)s"

_END = f"""
UPDATE writers SET last = %(number)s,
    results = coalesce((SELECT array_agg(ARRAY[turn, result]) FROM done), '{{}}')
WHERE {_WRITER}
RETURNING results
"""

_ASKED = """unnest(%(ids)b::bytea[]) WITH ORDINALITY AS asked (id, turn)"""

_CREATED = f"""
WITH writer AS (
    SELECT id FROM writers WHERE {_WRITER} FOR UPDATE
), created AS (
    INSERT INTO sessions (id, epoch, owner, created_at, ttl, quota_records, quota_bytes)
    SELECT asked.id, nextval('epochs'), writer.id, created_at, ttl, nullif(quota_records, -1), nullif(quota_bytes, -1)
    FROM writer CROSS JOIN unnest(%(ids)b::bytea[], %(created_at)b::text[], %(ttl)b::float8[],
        %(quota_records)b::bigint[], %(quota_bytes)b::bigint[])
        AS asked (id, created_at, ttl, quota_records, quota_bytes)
    ORDER BY asked.id
    ON CONFLICT (id) DO NOTHING
    RETURNING number, id, epoch
), owned AS (
    SELECT turn, number, epoch FROM created JOIN {_ASKED} USING (id)
), done AS (
    SELECT turn, epoch AS result FROM owned
)"""

_OWNED = f"""
WITH owned AS (
    SELECT turn, sessions.number
    FROM unnest(%(ids)b::bytea[], %(epochs)b::bigint[]) WITH ORDINALITY AS asked (id, epoch, turn)
    JOIN sessions USING (id, epoch) JOIN writers ON writers.id = owner
    WHERE {_WRITER}
    ORDER BY asked.id FOR SHARE OF sessions FOR UPDATE OF writers
), done AS (
    SELECT turn, number AS result FROM owned
)"""

# Most changes write few records of one session. They take half the time without arrays, and less if the row of the
# writer is not locked before it is changed. The sub-select waits for another worker that is taking the session.
FEW = 8
_FEW_WRITTEN = f"""
WITH writer AS (
    UPDATE writers SET last = %(number)s, results = coalesce((
        SELECT ARRAY[ARRAY[1, number]] FROM (
            SELECT number FROM sessions
            WHERE id = %(session)b AND epoch = %(epoch)s AND owner = %(writer)s FOR SHARE
        ) AS owned
    ), '{{{{}}}}')
    WHERE {_WRITER}
    RETURNING results
), written AS (
    INSERT INTO records (session, kind, name, value)
    SELECT results[1][2], new.* FROM writer CROSS JOIN (VALUES {{rows}}) AS new
    WHERE results <> '{{{{}}}}'
    ON CONFLICT (session, kind, sha256(name)) DO UPDATE SET value = excluded.value
)
SELECT results FROM writer
"""
_ROWS = [f"(%(kind{index})b::text, %(name{index})b::bytea, %(value{index})b::bytea)" for index in range(FEW)]
_FEW_WRITTEN_BY_COUNT = [_FEW_WRITTEN.format(rows=", ".join(_ROWS[:count])) for count in range(FEW + 1)]

_WRITTEN = """, written AS (
    INSERT INTO records (session, kind, name, value)
    SELECT number, kind, name, value
    FROM unnest(%(turns)b::bigint[], %(kinds)b::text[], %(names)b::bytea[], %(values)b::bytea[])
        WITH ORDINALITY AS written (turn, kind, name, value, position)
    JOIN owned USING (turn) ORDER BY position
    ON CONFLICT (session, kind, sha256(name)) DO UPDATE SET value = excluded.value
)"""
_REMOVED = """, removed AS (
    DELETE FROM records
    USING unnest(%(removed_turns)b::bigint[], %(removed_kinds)b::text[], %(removed_names)b::bytea[])
        AS removed (turn, kind, name) JOIN owned USING (turn)
    WHERE session = number AND records.kind = removed.kind AND sha256(records.name) = sha256(removed.name)
)"""
_CONFIGURED = """, configured AS (
    UPDATE sessions SET created_at = new.created_at, ttl = new.ttl,
        quota_records = nullif(new.quota_records, -1), quota_bytes = nullif(new.quota_bytes, -1)
    FROM unnest(%(configured)b::bigint[], %(created_at)b::text[], %(ttl)b::float8[],
        %(quota_records)b::bigint[], %(quota_bytes)b::bigint[])
        AS new (turn, created_at, ttl, quota_records, quota_bytes) JOIN owned USING (turn)
    WHERE sessions.number = owned.number
)"""

_ONE_OWNED = "SELECT 1 FROM sessions WHERE id = %b AND epoch = %s AND owner = %s"
_SEVERAL_OWNED = (
    "SELECT turn FROM unnest(%b::bytea[], %b::bigint[]) WITH ORDINALITY AS asked (id, epoch, turn)"
    " JOIN sessions USING (id, epoch) WHERE owner = %s"
)

_FOUND = f"""
WITH found AS (
    SELECT turn, sessions.number, writers.id AS writer, owner
    FROM {_ASKED} JOIN sessions USING (id) CROSS JOIN writers
    WHERE {_WRITER}
    ORDER BY asked.id FOR UPDATE
)"""
# `done` is computed as a whole, with the notifications, because pg_notify has an effect.
_TAKEN = f"""{_FOUND}, taken AS (
    UPDATE sessions SET epoch = nextval('epochs'), owner = writer
    FROM found WHERE sessions.number = found.number
    RETURNING turn, id, epoch, found.owner <> writer AS has_changed
), done AS (
    SELECT turn, epoch AS result,
        CASE WHEN has_changed THEN pg_notify('{CHANNEL}', epoch || ' ' || encode(id, 'hex'))::text END
    FROM taken
)"""
_DROPPED = f"""{_FOUND}, dropped AS (
    DELETE FROM sessions USING found WHERE sessions.number = found.number
    RETURNING turn, sessions.number, id, found.owner <> writer AS was_other
), done AS (
    SELECT turn, (SELECT count(*) FROM records WHERE session = number AND kind = counted) AS result,
        CASE WHEN was_other THEN
            pg_notify('{CHANNEL}', nextval('epochs') || ' ' || encode(id, 'hex'))::text END
    FROM dropped JOIN unnest(%(counted)b::text[]) WITH ORDINALITY AS asked (counted, turn) USING (turn)
)"""


def encoded(text: str) -> bytes:
    """Return an id or a name as it is stored."""
    return text.encode("utf-8", "surrogatepass")


def decoded(data: bytes) -> str:
    """Return the id or the name that is stored as `data`."""
    return data.decode("utf-8", "surrogatepass")


def creation(changes: Sequence[Change]) -> Statement:
    """Return the statement that creates sessions. Its results are their epochs."""
    arguments = _ids(changes) | _settings(changes)
    records, more = _records(changes)
    return _CREATED + records + _END, arguments | more


def write(changes: Sequence[Change]) -> Statement:
    """Return the statement that writes to sessions that the writer owns. Its results are the numbers of their rows."""
    first = changes[0]
    if (
        len(changes) == 1
        and first.settings is None
        and 0 < len(first.records) <= FEW
        and None not in first.records.values()
    ):
        return _few_written(first)
    records, arguments = _records(changes)
    arguments |= _ids(changes) | {"epochs": [Int8(change.epoch) for change in changes]}
    configured = [turn for turn, change in enumerate(changes, 1) if change.settings is not None]
    if configured:
        records += _CONFIGURED
        arguments |= _settings(changes) | {"configured": list(map(Int8, configured))}
    return _OWNED + records + _END, arguments


def takeover(changes: Sequence[Change]) -> Statement:
    """Return the statement that takes sessions over. Its results are their new epochs. Their owners are notified."""
    return _TAKEN + _END, _ids(changes)


def end(changes: Sequence[Change]) -> Statement:
    """Return the statement that deletes sessions. Its results are how many counted records they had. Their owners are
    notified."""
    return _DROPPED + _END, _ids(changes) | {"counted": [change.counted or "" for change in changes]}


def ownership(changes: Sequence[Change], writer: UUID) -> tuple[str, tuple[Any, ...]]:
    """Return the query, with its values, for the turns of the sessions that the writer owns under their epochs."""
    if len(changes) == 1:
        return _ONE_OWNED, (changes[0].session_id, changes[0].epoch, writer)
    epochs = [Int8(change.epoch) for change in changes]
    return _SEVERAL_OWNED, ([change.session_id for change in changes], epochs, writer)


def _few_written(change: Change) -> Statement:
    arguments: dict[str, Any] = {"session": change.session_id, "epoch": change.epoch}
    for index, ((kind, name), value) in enumerate(change.records.items()):
        arguments[f"kind{index}"] = kind
        arguments[f"name{index}"] = encoded(name)
        arguments[f"value{index}"] = value
    return _FEW_WRITTEN_BY_COUNT[len(change.records)], arguments


def _ids(changes: Sequence[Change]) -> dict[str, Any]:
    return {"ids": [change.session_id for change in changes]}


def _settings(changes: Sequence[Change]) -> dict[str, Any]:
    every = [change.settings for change in changes if change.settings is not None]
    return {
        "created_at": [each.created_at for each in every],
        "ttl": [float(each.ttl) for each in every],
        "quota_records": [_limit(each.quota.records) for each in every],
        "quota_bytes": [_limit(each.quota.bytes) for each in every],
    }


def _limit(limit: int | None) -> Int8:
    return Int8(-1 if limit is None else limit)


def _records(changes: Sequence[Change]) -> Statement:
    """Return the parts of a statement that write and remove records of the sessions in `owned`."""
    written: list[tuple[Any, ...]] = []
    removed: list[tuple[Any, ...]] = []
    for turn, change in enumerate(changes, 1):
        for (kind, name), value in change.records.items():
            row = (Int8(turn), kind, encoded(name))
            if value is None:
                removed.append(row)
            else:
                written.append((*row, value))
    parts = ""
    arguments: dict[str, Any] = {}
    if written:
        parts += _WRITTEN
        arguments |= _columns(("turns", "kinds", "names", "values"), written)
    if removed:
        parts += _REMOVED
        arguments |= _columns(("removed_turns", "removed_kinds", "removed_names"), removed)
    return parts, arguments


def _columns(names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}
