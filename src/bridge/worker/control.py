"""The commands that every worker has, whatever its adapter."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from bridge import errors
from bridge._framing import EVENT, Outbox
from bridge.adapter import Adapter, Ignored, NoArgs, Unchecked
from bridge.telemetry import logs
from bridge.version import __version__
from bridge.wire import arrays
from bridge.wire.codec import FORMATS, Format
from bridge.wire.messages import Event, Id
from bridge.worker import call_log, stats
from bridge.worker.calls import pause, resume
from bridge.worker.session_commands import add_session_commands
from bridge.worker.stats import StatsArgs

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.worker.dispatch import Deliver, Dispatcher


HEADER_BYTES = 4  # of a frame
SHARES = (1, 8, 64, 256)  # of a frame's bytes: as many characters a text of a log event may have


class Pong(msgspec.Struct, gc=False):
    status: str
    timestamp: str
    dspy_available: bool
    gemini_available: bool
    uptime: float
    mode: str
    worker_id: str | msgspec.UnsetType = msgspec.UNSET
    stuck_s: float | msgspec.UnsetType = msgspec.UNSET


class HelloArgs(msgspec.Struct):
    """offers: {"tools": true} to be called by programs, {"logs": true} to get log events,
    {"buffers": true} to get multipart frames."""

    offers: dict[str, bool] = {}


class CallArgs(msgspec.Struct):
    """id: that of the call in question."""

    id: Id


class ShutdownArgs(msgspec.Struct):
    """worker_id: existing hosts send it."""

    worker_id: Ignored = None


class LogLevelArgs(msgspec.Struct):
    """logger: the one to set, with those below it; missing: all that have no level of their own."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]
    logger: str | None = None


def control(dispatcher: Dispatcher) -> Adapter:
    """Return the control commands of `dispatcher`, as an adapter to be added to it."""
    adapter = Adapter("control")
    sessions = dispatcher.sessions
    dspy, gemini = dispatcher.available("dspy"), dispatcher.available("gemini")
    worker_id = msgspec.UNSET if dispatcher.options.worker_id is None else dispatcher.options.worker_id
    mode = dispatcher.options.mode

    @adapter.command("ping", Unchecked, lane="inline", idempotent=True)
    def ping(args: None, context: Context) -> Pong:
        """Says that Python answers, and since when."""
        stuck: float | msgspec.UnsetType = msgspec.UNSET
        if dispatcher.may_be_stuck:
            stuck = round(dispatcher.stuck_s, 1) or msgspec.UNSET
        return Pong("ok", context.timestamp, dspy, gemini, context.uptime, mode, worker_id, stuck)

    @adapter.command("hello", HelloArgs, lane="inline", idempotent=True)
    def hello(args: HelloArgs, context: Context) -> dict[str, Any]:
        """Says what the host offers: to be called (tools), to take logs instead of stderr."""
        offers = frozenset(name for name, offered in args.offers.items() if offered)
        dispatcher.host.offers = offers & {"tools", "logs", "buffers"}
        dispatcher.path.sets_apart = "buffers" in offers
        forward_logs(dispatcher, context if "logs" in offers else None)
        return {
            "version": __version__,
            "adapter": dispatcher.adapter.name,
            "accepted": sorted(dispatcher.host.offers),
        }

    @adapter.command("describe", lane="inline", idempotent=True)
    def describe(args: NoArgs, context: Context) -> dict[str, Any]:
        """Every command with the JSON Schema of its args."""
        return {
            "version": __version__,
            "adapter": dispatcher.adapter.name,
            "formats": [known.name for known in FORMATS],
            "max_frame": dispatcher.path.max_frame,
            "commands": {name: _describe(command.spec) for name, command in sorted(dispatcher.commands.items())},
            "errors": {code: error.category for code, error in errors.CODES.items()},
        }

    @adapter.command("get_stats", StatsArgs, lane="inline", idempotent=True)
    def get_stats(args: StatsArgs, context: Context) -> dict[str, Any]:
        """Calls, errors, bytes and latencies of each command; memory and uptime."""
        return stats.reply(dispatcher, args, context)

    @adapter.command("cancel", CallArgs, lane="inline", idempotent=True)
    def cancel(args: CallArgs, context: Context) -> dict[str, Any]:
        """Ends an open call: its one reply is `cancelled`."""
        return {"id": args.id, "cancelled": dispatcher.calls.cancel(args.id)}

    @adapter.command("pause", CallArgs, lane="inline", idempotent=True)
    def pause_events(args: CallArgs, context: Context) -> dict[str, Any]:
        """Holds back the events of a call, and with them its work."""
        return {"id": args.id, "paused": _each_open(dispatcher, args.id, pause)}

    @adapter.command("resume", CallArgs, lane="inline", idempotent=True)
    def resume_events(args: CallArgs, context: Context) -> dict[str, Any]:
        """Lets the events of a call go on."""
        return {"id": args.id, "resumed": _each_open(dispatcher, args.id, resume)}

    @adapter.command("set_log_level", LogLevelArgs, lane="inline", idempotent=True)
    def set_log_level(args: LogLevelArgs, context: Context) -> dict[str, Any]:
        """Logs from that level up from now on."""
        try:
            logs.set_log_level(args.level, args.logger or None)
        except ValueError as error:
            raise errors.InvalidArgs(f"args.logger: {error}", path="args.logger") from None
        call_log.follow_level()
        return {"status": "set", "level": args.level, "logger": args.logger}

    @adapter.command("cleanup", lane="end_all", idempotent=True)
    def cleanup(args: NoArgs, context: Context) -> dict[str, Any]:
        """Drops all sessions with their programs; durable ones stay in the store."""
        return {"status": "cleaned", "programs_removed": _programs(context)}

    @adapter.command("reset_state", lane="end_all", idempotent=True)
    def reset_state(args: NoArgs, context: Context) -> dict[str, Any]:
        """Drops all sessions, as cleanup does, and sets the counters back."""
        recorders = [command.recorder for command in dispatcher.commands.values()]
        result = {
            "status": "reset",
            "programs_cleared": _programs(context),
            "commands_reset": sum(recorder.calls for recorder in recorders),
            "errors_reset": sum(each.errors for each in recorders) + dispatcher.refused.total(),
        }
        for recorder in recorders:
            recorder.reset()
        dispatcher.refused.clear()
        return result

    @adapter.command("shutdown", ShutdownArgs, lane="inline")
    def shutdown(args: ShutdownArgs, context: Context) -> dict[str, Any]:
        """Ends the worker behind this reply; open calls get their grace period."""
        dispatcher.path.stopping = True
        return {
            "status": "shutting_down",
            "worker_id": dispatcher.options.worker_id,
            "mode": mode,
            "sessions_cleaned": len(sessions),
        }

    add_session_commands(adapter, dispatcher)
    return adapter


def forward_logs(dispatcher: Dispatcher, context: Context | None) -> None:
    """Log to the host of that call of `dispatcher` from now on; None: to stderr, if they went to
    a host of it."""
    send = None
    if context is not None:
        limit = dispatcher.path.max_frame
        send = partial(_send_log, context.format, context.deliver, limit)
    logs.forward(send, dispatcher)


def _send_log(format: Format, deliver: Deliver, limit: int, line: dict[str, Any]) -> None:
    """Send a log event; of one that is longer than a frame, only the beginnings of its texts."""
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
    """A text without what is beyond `longest` characters; anything else as it is."""
    is_long = isinstance(value, str) and len(value) > longest
    return value[:longest] + "…" if is_long else value


def _each_open(dispatcher: Dispatcher, call_id: Id, do: Callable[[Context], None]) -> bool:
    call = dispatcher.calls.open.get(call_id)
    if call is not None:
        do(call)
    return call is not None


def _describe(spec: Any) -> dict[str, Any]:
    schema = {"type": "object"}
    if spec.args:
        schema = msgspec.json.schema(spec.args, schema_hook=arrays.schema) or schema
    return {"help": spec.help, "lane": spec.lane.name, "idempotent": spec.idempotent, "args": schema}


def _programs(context: Context) -> int:
    return sum(session.records.counted_records for session in context.sessions)
