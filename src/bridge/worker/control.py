"""The commands that every worker has, with any adapter. Those for sessions are in session_commands.py."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from bridge import errors
from bridge._framing import EVENT, Outbox
from bridge.adapter import Adapter, CommandSpec, Ignored, NoArgs, Unchecked
from bridge.telemetry import logs
from bridge.version import __version__
from bridge.wire import arrays
from bridge.wire.codec import FORMATS, Format
from bridge.wire.messages import Event, Id
from bridge.worker import call_log, stats
from bridge.worker.calls import Deliver
from bridge.worker.stats import StatsArgs

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.worker.state import Worker


HEADER_BYTES = 4  # of a frame
SHARES = (1, 8, 64, 256)  # a text of a log event may have as many characters as this part of a frame's bytes


class Pong(msgspec.Struct, gc=False, omit_defaults=True):
    """Represents the result of `ping`. uptime, stuck_s: seconds."""

    status: str
    timestamp: str
    dspy_available: bool
    gemini_available: bool
    uptime: float
    mode: str
    worker_id: str | None = None
    stuck_s: float | None = None


class HelloArgs(msgspec.Struct):
    """The args of `hello`. offers: {"tools": true} to be called by programs, {"logs": true} to get log events,
    {"buffers": true} to get multipart frames."""

    offers: dict[str, bool] = {}


class CallArgs(msgspec.Struct):
    """The args of `cancel`, `pause` and `resume`. id: of the call."""

    id: Id


class ShutdownArgs(msgspec.Struct):
    """The args of `shutdown`. worker_id: accepted because existing hosts send it."""

    worker_id: Ignored = None


class LogLevelArgs(msgspec.Struct):
    """The args of `set_log_level`. logger: the logger to set, with its descendants; missing: all loggers without a
    level of their own."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    logger: str | None = None


adapter = Adapter("control")


@adapter.command("ping", Unchecked, lane="inline", idempotent=True)
def ping(args: None, context: Context) -> Pong:
    """Report that the worker answers, and for how long it has run."""
    worker: Worker = context.worker
    options = worker.options
    return Pong(
        "ok",
        context.timestamp,
        worker.has_dspy,
        worker.has_gemini,
        context.uptime,
        options.mode,
        options.worker_id,
        (round(worker.stuck_s, 1) or None) if worker.may_be_stuck else None,
    )


@adapter.command("hello", HelloArgs, lane="inline", idempotent=True)
def hello(args: HelloArgs, context: Context) -> dict[str, Any]:
    """Note what the host offers: to be called (tools), to take log events (logs) and multipart frames (buffers)."""
    worker: Worker = context.worker
    offers = frozenset(name for name, offered in args.offers.items() if offered)
    worker.host.offers = offers & {"tools", "logs", "buffers"}
    worker.path.accepts_buffers = "buffers" in offers
    if "logs" in offers:
        logs.forward(partial(_send_log, context.format, context.deliver, worker.path.max_frame), worker)
    else:
        logs.forward(None, worker)
    return {
        "version": __version__,
        "adapter": worker.adapter.name,
        "accepted": sorted(worker.host.offers),
        "pid": os.getpid(),
        "max_frame": worker.path.max_frame,
    }


@adapter.command("describe", lane="inline", idempotent=True)
def describe(args: NoArgs, context: Context) -> dict[str, Any]:
    """Describe every command, with the JSON Schema of its args."""
    worker: Worker = context.worker
    return {
        "version": __version__,
        "adapter": worker.adapter.name,
        "formats": [known.name for known in FORMATS],
        "max_frame": worker.path.max_frame,
        "commands": {name: _described(command.spec) for name, command in sorted(worker.commands.items())},
        "errors": {code: error.category for code, error in errors.CODES.items()},
        **worker.adapter.describe(),
    }


@adapter.command("get_stats", StatsArgs, lane="inline", idempotent=True)
def get_stats(args: StatsArgs, context: Context) -> dict[str, Any]:
    """Report calls, errors, bytes and latencies of each command; memory and uptime."""
    return stats.result(context.worker, args, context)


@adapter.command("cancel", CallArgs, lane="inline", idempotent=True)
def cancel(args: CallArgs, context: Context) -> dict[str, Any]:
    """End an open call: its one reply is `cancelled`."""
    worker: Worker = context.worker
    return {"id": args.id, "cancelled": worker.calls.cancel(args.id)}


@adapter.command("pause", CallArgs, lane="inline", idempotent=True)
def pause_events(args: CallArgs, context: Context) -> dict[str, Any]:
    """Pause the events of a call: its handler waits before the next one."""
    return {"id": args.id, "paused": context.worker.calls.pause(args.id)}


@adapter.command("resume", CallArgs, lane="inline", idempotent=True)
def resume_events(args: CallArgs, context: Context) -> dict[str, Any]:
    """Resume the events of a paused call."""
    return {"id": args.id, "resumed": context.worker.calls.resume(args.id)}


@adapter.command("set_log_level", LogLevelArgs, lane="inline", idempotent=True)
def set_log_level(args: LogLevelArgs, context: Context) -> dict[str, Any]:
    """Set the level from which lines are logged."""
    try:
        logs.set_log_level(args.level, args.logger or None)
    except ValueError as error:
        raise errors.InvalidArgs(f"args.logger: {error}", path="args.logger") from None
    call_log.follow_level()
    return {"status": "set", "level": args.level, "logger": args.logger}


@adapter.command("cleanup", lane="end_all", idempotent=True)
def cleanup(args: NoArgs, context: Context) -> dict[str, Any]:
    """Drop all sessions with their programs; durable ones stay in the store."""
    return {"status": "cleaned", "programs_removed": _programs(context)}


@adapter.command("reset_state", lane="end_all", idempotent=True)
def reset_state(args: NoArgs, context: Context) -> dict[str, Any]:
    """Drop all sessions, as `cleanup` does, and reset the counters."""
    worker: Worker = context.worker
    recorders = [command.recorder for command in worker.commands.values()]
    result = {
        "status": "reset",
        "programs_cleared": _programs(context),
        "commands_reset": sum(recorder.calls for recorder in recorders),
        "errors_reset": sum(recorder.errors for recorder in recorders) + worker.refused.total(),
    }
    for recorder in recorders:
        recorder.reset()
    worker.refused.clear()
    return result


@adapter.command("shutdown", ShutdownArgs, lane="inline")
def shutdown(args: ShutdownArgs, context: Context) -> dict[str, Any]:
    """End the worker after this reply; open calls get their grace period."""
    worker: Worker = context.worker
    worker.path.stopping = True
    return {
        "status": "shutting_down",
        "worker_id": worker.options.worker_id,
        "mode": worker.options.mode,
        "sessions_cleaned": len(worker.sessions),
    }


def _send_log(format: Format, deliver: Deliver, limit: int, line: dict[str, Any]) -> None:
    """Send `line` as a log event. Shorten its texts if it is longer than `limit` bytes, the longest frame."""
    for share in SHARES:
        fitting = {key: _beginning(value, limit // share) for key, value in line.items()}
        outbox = Outbox()
        outbox.kind = EVENT
        outbox.append(format.encode_into, Event(fitting.get("request_id"), "log", fitting))
        if len(outbox) - HEADER_BYTES <= limit:
            break
    rest = deliver(outbox)
    if rest is not None:
        rest()


def _beginning(value: Any, longest: int) -> Any:
    """Return the first `longest` characters of a text; return any other value unchanged."""
    is_long = isinstance(value, str) and len(value) > longest
    return value[:longest] + "…" if is_long else value


def _described(spec: CommandSpec) -> dict[str, Any]:
    schema = {"type": "object"}
    if spec.args:
        schema = msgspec.json.schema(spec.args, schema_hook=arrays.schema) or schema
    return {"help": spec.help, "lane": spec.lane.name, "idempotent": spec.idempotent, "args": schema}


def _programs(context: Context) -> int:
    return sum(session.records.counted_records for session in context.sessions)
