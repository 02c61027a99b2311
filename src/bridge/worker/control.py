"""The commands that every worker has, whatever its adapter."""

from __future__ import annotations

import os
import platform
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge._dispatch import uptime
from bridge.adapter import Adapter
from bridge.codec import FORMATS
from bridge.version import __version__

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.worker.dispatch import Dispatcher


class Pong(msgspec.Struct, gc=False):
    status: str
    timestamp: str
    dspy_available: bool
    uptime: float
    mode: str
    worker_id: str | msgspec.UnsetType = msgspec.UNSET


class SessionDataArgs(msgspec.Struct):
    session_id: str | None = None
    key: str | None = None


class UpdateSessionDataArgs(msgspec.Struct):
    """operation: "set" (also "put", "update"), "delete" (also "remove"), or "merge" (a map)."""

    session_id: str | None = None
    operation: str = "set"
    key: str | None = None
    value: Any = None


def control(dispatcher: Dispatcher) -> Adapter:
    """The control commands of `dispatcher`, as an adapter to be added to it."""
    adapter = Adapter("control")
    sessions = dispatcher.sessions
    available = cache(dispatcher.adapter.available)
    worker_id = msgspec.UNSET if dispatcher.worker_id is None else dispatcher.worker_id
    mode = dispatcher.mode

    @adapter.command("ping", lane="inline", idempotent=True)
    def ping(args: None, context: Context) -> Pong:
        """Says that Python answers, and since when."""
        return Pong("ok", context.timestamp, available(), uptime(), mode, worker_id)

    @adapter.command("describe", lane="inline", idempotent=True)
    def describe(args: None, context: Context) -> dict[str, Any]:
        """Every command with the JSON Schema of its args."""
        return {
            "version": __version__,
            "adapter": dispatcher.adapter.name,
            "formats": [known.name for known in FORMATS],
            "max_frame": dispatcher.path.max_frame,
            "commands": {
                name: _describe(command.spec)
                for name, command in sorted(dispatcher.commands.items())
            },
            "errors": {code: error.category for code, error in errors.CODES.items()},
        }

    @adapter.command("get_stats", lane="inline", idempotent=True)
    def get_stats(args: None, context: Context) -> dict[str, Any]:
        """Calls, errors, bytes and latencies of each command; memory and uptime."""
        used = {name: c.recorder for name, c in dispatcher.commands.items() if c.recorder.calls}
        return {
            "programs_count": sessions.programs,
            "sessions_count": len(sessions),
            "command_count": sum(recorder.calls for recorder in used.values()),
            "error_count": sum(recorder.errors for recorder in used.values()) + dispatcher.refused,
            "refused_count": dispatcher.refused,
            "in_flight": dispatcher.lanes.unfinished,
            "uptime": uptime(),
            "memory_usage": memory_usage(),
            "dspy_available": available(),
            "commands": {name: recorder.summary() for name, recorder in used.items()},
            "worker": {
                "version": __version__,
                "python": platform.python_version(),
                "pid": os.getpid(),
                "mode": mode,
                "adapter": dispatcher.adapter.name,
                "threads": dispatcher.lanes.limit,
            },
        }

    @adapter.command("cleanup", lane="end_all", idempotent=True)
    def cleanup(args: None, context: Context) -> dict[str, Any]:
        """Drops all sessions with their programs."""
        return {"status": "cleaned", "programs_removed": _programs(context)}

    @adapter.command("reset_state", lane="end_all", idempotent=True)
    def reset_state(args: None, context: Context) -> dict[str, Any]:
        """Drops all sessions, and sets the counters back."""
        recorders = [command.recorder for command in dispatcher.commands.values()]
        result = {
            "status": "reset",
            "programs_cleared": _programs(context),
            "commands_reset": sum(recorder.calls for recorder in recorders),
            "errors_reset": sum(recorder.errors for recorder in recorders) + dispatcher.refused,
        }
        for recorder in recorders:
            recorder.reset()
        dispatcher.refused = 0
        return result

    @adapter.command("cleanup_session", lane="end_session", idempotent=True)
    def cleanup_session(args: None, context: Context) -> dict[str, Any]:
        """Drops one session with its programs; fine where there is none."""
        return {
            "status": "cleaned",
            "session_id": context.session_id,
            "programs_removed": _programs(context),
        }

    @adapter.command("get_session_data", SessionDataArgs, idempotent=True)
    def get_session_data(args: SessionDataArgs, context: Context) -> dict[str, Any]:
        """The session's data, or of it one key."""
        data = context.session.data
        if args.key is not None:
            data = {key: value for key, value in data.items() if key == args.key}
        return {"session_id": context.session.id, "data": dict(data)}

    @adapter.command("update_session_data", UpdateSessionDataArgs, lane="session", idempotent=True)
    def update_session_data(args: UpdateSessionDataArgs, context: Context) -> dict[str, Any]:
        """Sets, deletes or merges session data."""
        _update(context.session.data, args)
        return {
            "status": "updated",
            "session_id": context.session.id,
            "operation": args.operation,
            "key": args.key,
        }

    @adapter.command("shutdown", lane="inline")
    def shutdown(args: None, context: Context) -> dict[str, Any]:
        """Ends the worker behind this reply; open calls get their grace period."""
        dispatcher.path.stopping = True
        return {
            "status": "shutting_down",
            "worker_id": dispatcher.worker_id,
            "mode": mode,
            "sessions_cleaned": len(sessions),
        }

    return adapter


def memory_usage() -> dict[str, float]:
    """rss and vms of this process in bytes, and rss in percent of the machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    try:
        with open("/proc/self/statm") as statm:
            vms, rss = (int(pages) * page for pages in statm.read().split()[:2])
    except OSError:  # no procfs: the peak is what can be had
        import resource

        vms, rss = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rss": rss, "vms": vms, "percent": round(100 * rss / total, 2)}


def _describe(spec: Any) -> dict[str, Any]:
    schema = (spec.args and msgspec.json.schema(spec.args)) or {"type": "object"}
    return {"help": spec.help, "lane": spec.lane, "idempotent": spec.idempotent, "args": schema}


def _programs(context: Context) -> int:
    return sum(len(session.state) for session in context.sessions)


def _update(data: dict[str, Any], args: UpdateSessionDataArgs) -> None:
    if args.operation == "merge":
        if not isinstance(args.value, dict):
            raise errors.InvalidArgs("merge needs a map as value", path="args.value")
        data.update(args.value)
    elif args.key is None:
        raise errors.InvalidArgs(f"{args.operation} needs a key", path="args.key")
    elif args.operation in ("set", "put", "update"):
        data[args.key] = args.value
    elif args.operation in ("delete", "remove"):
        data.pop(args.key, None)
    else:
        raise errors.InvalidArgs(
            f"unknown operation {args.operation!r}: set, delete or merge", path="args.operation"
        )
