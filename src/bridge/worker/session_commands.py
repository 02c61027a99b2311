"""The control commands that are about sessions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge.adapter import NoArgs
from bridge.options import LONGEST_TTL
from bridge.records import Quota
from bridge.wire.codec import JSON, MSGPACK, Format
from bridge.wire.tensors import substitute
from bridge.worker.dispatch import SessionArgs
from bridge.worker.session import Session
from bridge.worker.session_data import Value, below

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapter import Adapter
    from bridge.worker.dispatch import Dispatcher
    from bridge.worker.stores.protocol import StoredSession

LISTED = 1000  # sessions, unless the host wants more
MOST_LISTED = 1_000_000
OPERATIONS = {
    **dict.fromkeys(("set", "put", "update"), "set"),
    **dict.fromkeys(("delete", "remove"), "delete"),
    "merge": "merge",
}


class CreateSessionArgs(msgspec.Struct):
    """ttl_s: seconds without a call that it lives, at most a year. durable: kept in the store.

    quota: {"programs", "bytes"}. What is missing stays as it is (a new session: as the worker was
    started); null in a quota is none.
    """

    session_id: str | None = None
    ttl_s: float | None = None
    durable: bool | None = None
    quota: Quota | None = None


class ListSessionsArgs(msgspec.Struct):
    """limit: how many are listed, the last used first."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=MOST_LISTED)] = LISTED


class SessionDataArgs(msgspec.Struct):
    session_id: str | None = None
    key: str | None = None


class UpdateSessionDataArgs(msgspec.Struct):
    """operation: "set" (also "put", "update"), "delete" (also "remove"), or "merge" (a map)."""

    session_id: str | None = None
    operation: str = "set"
    key: str | None = None
    value: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


# Made here, where one thread at a time comes: see codec.Format.
_value = msgspec.msgpack.Decoder(Value).decode
_json_args = msgspec.json.Decoder(dict[str, Any]).decode


def add_session_commands(adapter: Adapter, dispatcher: Dispatcher) -> None:
    """Declare them on `adapter`, for the sessions of `dispatcher`."""
    sessions = dispatcher.sessions

    @adapter.command("create_session", CreateSessionArgs, lane="session", idempotent=True)
    def create_session(args: CreateSessionArgs, context: Context) -> dict[str, Any]:
        """Makes a session with settings of its own, or gives one that is there other settings."""
        session: Session = context.session
        _required(context)
        ttl = session.ttl if args.ttl_s is None else _checked_ttl(args.ttl_s)
        quota = session.records.quota if args.quota is None else args.quota
        is_new = session.is_new
        if args.durable is False and session.is_durable:
            raise errors.InvalidArgs(
                "args.durable: a durable session stays so; cleanup_session ends it",
                path="args.durable",
            )
        sessions.configure(session, ttl, quota, bool(args.durable))
        status = "created" if is_new else "exists"
        return {"status": status, **_described(session), "live": True}

    @adapter.command("list_sessions", ListSessionsArgs, lane="worker", idempotent=True)
    def list_sessions(args: ListSessionsArgs, context: Context) -> dict[str, Any]:
        """Lists the sessions of this worker, the last used first, and those that only the store
        has."""
        limit, store, live = args.limit, sessions.store, sessions.live()
        shown = live[:limit]
        rest: list[dict[str, Any]] = []
        total = len(live)
        if store is not None:
            shown = [one for one in shown if not one.is_durable or store.is_owner(one.id, one.epoch)]
            rows, stored = store.list_sessions(limit, sessions.counted)
            here = {session.id for session in shown}
            rest = [_as_stored(row) for row in rows if row.session_id not in here]
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
        """Describes one session, not used by that. Unlike other commands this makes none."""
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
        """Drops one session with its programs, also from the store; fine where there is none."""
        removed = sum(session.records.counted_records for session in context.sessions)
        if sessions.store is not None:
            removed = max(removed, sessions.store.drop(context.session.id, sessions.counted))
        return {
            "status": "cleaned",
            "session_id": context.session_id,
            "programs_removed": removed,
        }

    @adapter.command("get_session_data", SessionDataArgs, idempotent=True)
    def get_session_data(args: SessionDataArgs, context: Context) -> dict[str, Any]:
        """Returns the session's data, or of it one key."""
        stored = context.session.records.of("data")
        if args.key is None:
            stored = dict(stored)
        else:
            value = stored.get(args.key)
            stored = {} if value is None else {args.key: value}
        data = {
            key: _value(value).in_format(context.format, below("result.data", key)) for key, value in stored.items()
        }
        return {"session_id": context.session.id, "data": data}

    @adapter.command("update_session_data", UpdateSessionDataArgs, lane="session", idempotent=True)
    def update_session_data(args: UpdateSessionDataArgs, context: Context) -> dict[str, Any]:
        """Sets, deletes or merges session data."""
        _update(context, args)
        return {
            "status": "updated",
            "session_id": context.session.id,
            "operation": args.operation,
            "key": args.key,
        }


def _required(context: Context) -> None:
    if context.session_id is None:
        raise errors.InvalidArgs("Session ID is required", path="args.session_id")


def _checked_ttl(ttl: float) -> float:
    if not 0 < ttl <= LONGEST_TTL:  # NaN neither
        raise errors.InvalidArgs(
            f"args.ttl_s: above 0 and at most {LONGEST_TTL:.0f} (a year), not {ttl:g}",
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
        raise errors.InvalidArgs(f"args.key: {args.operation} needs a key", path="args.key")
    records = context.session.records
    if args.key is not None and operation == "delete":
        records.remove("data", args.key)
        return
    raw, format = _given(context, args)
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
    # All of them or, over the quota, none.
    records.put_all("data", {key: msgspec.msgpack.encode(each) for key, each in values.items()})


def _given(context: Context, args: UpdateSessionDataArgs) -> tuple[msgspec.Raw, Format]:
    """Return the value that came, null if none did, and its format."""
    if not context.buffers or context.format is not JSON:
        return args.value or msgspec.Raw(context.format.encode(None)), context.format
    # JSON alone cannot hold what is in the buffers.
    value = _json_args(context.request.args).get("value")
    try:
        value = substitute(value, context.buffers, lambda tensor: tensor)
        return msgspec.Raw(MSGPACK.encode(value)), MSGPACK
    except (msgspec.ValidationError, OverflowError, RecursionError) as error:
        raise errors.InvalidArgs(f"args.value: {error}", path="args.value") from None


def _entries(raw: msgspec.Raw, format: Format) -> dict[str, msgspec.Raw]:
    """Return the entries of a map whose keys become those of the session's data; of an empty list,
    none.

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
    """Return what the key has once the entries of `value` are in it. Raises InvalidArgs."""
    given = value.as_map()
    if given is None:
        raise errors.InvalidArgs("args.value: merge needs a map; set puts another value", path="args.value")
    if stored is None:
        return given
    before = _value(stored).as_map()
    if before is None:
        raise errors.InvalidArgs(
            f"args.key: what {key[:100]!r} has is no map to merge into; set replaces it",
            path="args.key",
        )
    return before.merged(given, "args.value")
