"""The commands for sessions and their data, which every worker has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge.adapter import Adapter, NoArgs
from bridge.options import LONGEST_TTL
from bridge.records import Quota
from bridge.wire.codec import JSON, MSGPACK, Format
from bridge.wire.tensors import substitute
from bridge.worker.session import Session
from bridge.worker.session_data import Value, below
from bridge.worker.sessions import SessionArgs

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.worker.sessions import Sessions
    from bridge.worker.stores.protocol import StoredSession

DEFAULT_LISTED = 1000  # sessions
MOST_LISTED = 1_000_000
OPERATIONS = {
    **dict.fromkeys(("set", "put", "update"), "set"),
    **dict.fromkeys(("delete", "remove"), "delete"),
    "merge": "merge",
}


class CreateSessionArgs(msgspec.Struct):
    """The args of `create_session`.

    ttl_s: seconds without a call after which the session expires, at most a year. durable: whether it is in the store.
    quota: {"programs", "bytes"}; null is no limit. A missing setting does not change; a new session gets the one that
    the worker was started with.
    """

    session_id: str | None = None
    ttl_s: float | None = None
    durable: bool | None = None
    quota: Quota | None = None


class ListSessionsArgs(msgspec.Struct):
    """The args of `list_sessions`. limit: the largest number of sessions to list."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=MOST_LISTED)] = DEFAULT_LISTED


class SessionDataArgs(msgspec.Struct):
    """The args of `get_session_data`. key: the only key to return; missing: all keys."""

    session_id: str | None = None
    key: str | None = None


class UpdateSessionDataArgs(msgspec.Struct):
    """The args of `update_session_data`. operation: "set" (also "put", "update"), "delete" (also "remove"), or "merge"
    (of a map)."""

    session_id: str | None = None
    operation: str = "set"
    key: str | None = None
    value: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


# Made at import, on one thread: see codec.Format.
_value = msgspec.msgpack.Decoder(Value).decode


adapter = Adapter("sessions")


@adapter.command("create_session", CreateSessionArgs, lane="session", idempotent=True)
def create_session(args: CreateSessionArgs, context: Context) -> dict[str, Any]:
    """Create a session with its own settings, or change the settings of an existing one."""
    session: Session = context.session
    sessions: Sessions = context.worker.sessions
    _require_session_id(context)
    ttl = session.ttl if args.ttl_s is None else _checked_ttl(args.ttl_s)
    quota = session.records.quota if args.quota is None else args.quota
    is_new = session.is_new
    if args.durable is False and session.is_durable:
        raise errors.InvalidArgs(
            "args.durable: a durable session cannot become a transient one; cleanup_session ends it",
            path="args.durable",
        )
    sessions.configure(session, ttl, quota, bool(args.durable))
    status = "created" if is_new else "exists"
    return {"status": status, **_described(session), "live": True}


@adapter.command("list_sessions", ListSessionsArgs, lane="worker", idempotent=True)
def list_sessions(args: ListSessionsArgs, context: Context) -> dict[str, Any]:
    """List the sessions of this worker, the most recently used first, then those that only the store has."""
    sessions: Sessions = context.worker.sessions
    limit, store = args.limit, sessions.store
    live = [one for one in sessions.live() if one.is_loaded]  # of the others, only the store knows what they are
    shown = live[:limit]
    rest: list[dict[str, Any]] = []
    total = len(live)
    if store is not None:
        shown = [one for one in shown if not one.is_durable or store.is_owner(one.id, one.epoch)]
        rows, stored = store.list_sessions(limit, sessions.counted)
        live_ids = {session.id for session in shown}
        rest = [_as_stored(row) for row in rows if row.session_id not in live_ids]
        total = stored + sum(not session.is_durable for session in live)
    return {
        "sessions": ([{**_described(one), "live": True} for one in shown] + rest)[:limit],
        "total_count": total,
        "limit": sessions.limit,
        "expired": sessions.expired,
        "evicted": sessions.evicted,
    }


@adapter.command("get_session", SessionArgs, lane="worker", idempotent=True)
def get_session(args: SessionArgs, context: Context) -> dict[str, Any]:
    """Describe a session, without creating it or counting as a use of it."""
    sessions: Sessions = context.worker.sessions
    session_id = context.request.session_id or args.session_id
    if session_id is None:
        session_id = sessions.default_id
    session = sessions.find(session_id)
    stored = None if sessions.store is None else sessions.store.find(session_id, sessions.counted)
    if session is not None and session.epoch == (0 if stored is None else stored.epoch):
        return {**_described(session), "live": True}
    if stored is not None:
        return _as_stored(stored)
    why = sessions.why_gone(session_id)
    raise errors.SessionNotFound(
        f"session not found: {session_id[:100]}{f' ({why})' if why else ''}",
        **({"was": why} if why else {}),
    )


@adapter.command("cleanup_session", lane="end_session", idempotent=True)
def cleanup_session(args: NoArgs, context: Context) -> dict[str, Any]:
    """Drop a session with its programs, also from the store. It need not exist."""
    sessions: Sessions = context.worker.sessions
    removed = sum(session.records.counted_records for session in context.sessions)
    if sessions.store is not None:
        removed = max(removed, sessions.store.drop(context.session.id, sessions.counted))
    return {"status": "cleaned", "session_id": context.session_id, "programs_removed": removed}


@adapter.command("get_session_data", SessionDataArgs, idempotent=True)
def get_session_data(args: SessionDataArgs, context: Context) -> dict[str, Any]:
    """Return the session's data, or one key of it."""
    stored = context.session.records.of("data")
    if args.key is None:
        stored = dict(stored)
    else:
        value = stored.get(args.key)
        stored = {} if value is None else {args.key: value}
    data = {key: _value(value).in_format(context.format, below("result.data", key)) for key, value in stored.items()}
    return {"session_id": context.session.id, "data": data}


@adapter.command("update_session_data", UpdateSessionDataArgs, lane="session", idempotent=True)
def update_session_data(args: UpdateSessionDataArgs, context: Context) -> dict[str, Any]:
    """Set, delete or merge session data."""
    _update(context, args)
    return {
        "status": "updated",
        "session_id": context.session.id,
        "operation": args.operation,
        "key": args.key,
    }


def _require_session_id(context: Context) -> None:
    if context.session_id is None:
        raise errors.InvalidArgs("Session ID is required", path="args.session_id")


def _checked_ttl(ttl: float) -> float:
    if not 0 < ttl <= LONGEST_TTL:  # false for NaN
        raise errors.InvalidArgs(
            f"args.ttl_s: must be above 0 and at most {LONGEST_TTL} (a year), got {ttl:g}",
            path="args.ttl_s",
        )
    return ttl


def _described(session: Session) -> dict[str, Any]:
    quota = session.records.quota
    return {
        "session_id": session.id,
        "created_at": session.created_at,
        "idle_s": session.idle,
        "ttl_s": session.ttl,
        "durable": session.is_durable,
        "programs": session.records.counted_records,
        "bytes": session.records.size,
        "quota": {"programs": quota.records, "bytes": quota.bytes},
    }


def _as_stored(session: StoredSession) -> dict[str, Any]:
    return {
        "session_id": session.session_id,
        "created_at": session.created_at,
        "ttl_s": session.ttl,
        "durable": True,
        "programs": session.counted_records,
        "bytes": session.bytes,
        "live": False,
    }


def _update(context: Context, args: UpdateSessionDataArgs) -> None:
    operation = OPERATIONS.get(args.operation)
    if operation is None:
        raise errors.InvalidArgs(
            f"args.operation: unknown operation {args.operation[:100]!r}; known: {', '.join(OPERATIONS)}",
            path="args.operation",
        )
    if args.key is None and operation != "merge":
        raise errors.InvalidArgs(f"args.key is required for the operation {args.operation!r}", path="args.key")
    records = context.session.records
    if args.key is not None and operation == "delete":
        records.remove("data", args.key)
        return
    raw, format = _value_of(context, args)
    if args.key is None:
        values = {
            key: Value.of(entry, format, below("args.value", key)) for key, entry in _entries(raw, format).items()
        }
    else:
        value = Value.of(raw, format, "args.value")
        stored = records.of("data").get(args.key)
        if operation == "merge":
            value = _merged(args.key, stored, value)
        values = {args.key: value}
    # All in one call, so that an exceeded quota refuses all of them.
    records.put_all("data", {key: msgspec.msgpack.encode(each) for key, each in values.items()})


def _value_of(context: Context, args: UpdateSessionDataArgs) -> tuple[msgspec.Raw, Format]:
    """Return the value in the request (null if it has none) and the format in which it is encoded."""
    if not context.buffers or context.format is not JSON:
        return args.value or msgspec.Raw(context.format.encode(None)), context.format
    # JSON cannot hold the contents of the buffers.
    value = JSON.decode_args(context.request.args, dict[str, Any], undecodable="refuse").get("value")
    try:
        value = substitute(value, context.buffers, lambda tensor: tensor)
        return msgspec.Raw(MSGPACK.encode(value)), MSGPACK
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise errors.InvalidArgs(f"args.value: {error}", path="args.value") from None


def _entries(raw: msgspec.Raw, format: Format) -> dict[str, msgspec.Raw]:
    """Return the entries of a map whose keys are strings. An empty list counts as an empty map.

    Raises InvalidArgs.
    """
    try:
        entries: dict[str, msgspec.Raw] = format.decode(raw, dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        given = Value.of(raw, format, "args.value").as_map()
        if given is not None and not given.entries():
            return {}
        raise errors.InvalidArgs(
            "args.value: merge without a key needs a map whose keys are strings",
            path="args.value",
        ) from None
    return entries


def _merged(key: str, stored: bytes | None, value: Value) -> Value:
    """Return the stored map with the entries of `value` added to it. Raises InvalidArgs if one of them is not a map."""
    given = value.as_map()
    if given is None:
        raise errors.InvalidArgs("args.value: merge needs a map; set stores any value", path="args.value")
    if stored is None:
        return given
    before = _value(stored).as_map()
    if before is None:
        raise errors.InvalidArgs(
            f"args.key: the value of {key[:100]!r} is not a map, so nothing can be merged into it; set replaces it",
            path="args.key",
        )
    return before.merged(given, "args.value")
