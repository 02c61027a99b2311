"""The result of `get_stats`, computed when it is requested from the recorders of commands and sessions."""

from __future__ import annotations

import gc
import os
import platform
import threading
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge._histogram import SLOT_NS, Histogram, Recorder, now_ns
from bridge.version import __version__
from bridge.worker._companion import lines_lost
from bridge.worker.session import Session

if TYPE_CHECKING:
    from bridge._dispatch import Command, Context
    from bridge.worker.calls import Call
    from bridge.worker.state import Worker

SECTIONS = ("commands", "sessions", "process", "histograms", "worker")
FORMATS = ("map", "prometheus")
WINDOWS = {"1m": 60, "5m": 300}  # seconds
MOST_SESSIONS = 1000  # in one reply, which takes the reading thread about 20 ms


class StatsArgs(msgspec.Struct):
    """The args of `get_stats`.

    include: names of sections; null: commands, worker, and an overview. session_id: the only session to list.
    limit: the largest number of sessions to list, the most recently used first. format: "map" or "prometheus".
    """

    include: list[str] | None = None
    session_id: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=MOST_SESSIONS)] = 100
    format: str = "map"


def result(worker: Worker, args: StatsArgs, context: Context) -> dict[str, Any]:
    """Return the result of `get_stats`. Raises InvalidArgs, NotAllowed and Overloaded."""
    _refuse_unknown(args)
    now = now_ns()
    calls = OpenCalls(worker.calls.open.values())
    include = set(args.include or ())
    sessions = []
    if "sessions" in include:
        sessions = listed_sessions(worker, context.session_id or args.session_id, args.limit)
    if args.format == "prometheus":
        return worker.prometheus(calls, sessions, context.uptime)
    sections: dict[str, Any] = {}
    if args.include is None:
        sections = _overview(worker, calls, context.uptime)
        include = {"commands", "worker"}
    raw = "histograms" in include
    if "commands" in include or (raw and "sessions" not in include):
        sections["commands"] = {
            command.name: _entry(command.recorder, calls, command, now, raw) for command in used_commands(worker, calls)
        }
    if "sessions" in include:
        sections["sessions"] = [
            {
                "session_id": session.id,
                "idle_s": session.idle,
                **_entry(session.recorder, calls, session, now, raw),
            }
            for session in sessions
        ]
    if "process" in include:
        sections["process"] = resources(context.uptime)
    if "worker" in include:
        sections["worker"] = _worker(worker, calls, context.uptime)
    return sections


class OpenCalls:
    """Represents the number of calls that have no reply yet, by command and by session.

    in_flight: all of them. queued: those that wait for their turn or for a thread.
    """

    def __init__(self, calls: Iterable[Call]) -> None:
        self.in_flight: Counter[Command | Session] = Counter()
        self.queued: Counter[Command | Session] = Counter()
        self.total = self.total_queued = 0
        for call in list(calls):  # a copy, because other threads end calls meanwhile
            waits = not call.running
            self.total += 1
            self.total_queued += waits
            self.in_flight[call.command] += 1
            self.queued[call.command] += waits
            if call.session is not None:
                self.in_flight[call.session] += 1
                self.queued[call.session] += waits


def used_commands(worker: Worker, calls: OpenCalls) -> list[Command]:
    """Return the commands that have been called, including those whose only calls are open."""
    commands = list(worker.commands.values())
    return [command for command in commands if command.recorder.calls or calls.in_flight[command]]


def listed_sessions(worker: Worker, session_id: str | None, limit: int) -> list[Session]:
    """Return the `limit` most recently used sessions; or, if an id is given, the session of that id, if it is live."""
    if session_id is None:
        return worker.sessions.live(limit)
    found = worker.sessions.find(session_id)
    return [] if found is None else [found]


def memory_usage() -> dict[str, float]:
    """Return the rss and vms of this process in bytes, and its rss in percent of the machine's memory."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = os.sysconf("SC_PHYS_PAGES") * page
    try:
        with open("/proc/self/statm") as statm:
            vms, rss = (int(pages) * page for pages in statm.read().split()[:2])
    except OSError:  # no procfs; the peak is available everywhere
        import resource

        vms, rss = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"rss": rss, "vms": vms, "percent": round(100 * rss / total, 2)}


def _private_bytes() -> int | None:
    """Return the size of the pages that only this process has; None if the system does not tell."""
    try:
        with open("/proc/self/smaps_rollup") as rollup:
            fields = dict(line.split(":") for line in rollup if line.startswith("Private_"))
    except OSError:
        return None
    return sum(int(size.split()[0]) * 1024 for size in fields.values())


def resources(uptime: float) -> dict[str, Any]:
    """Return what this process uses: rss, private (the part of it that no other process shares; where the system tells)
    and vms (bytes), cpu_user, cpu_system and uptime (seconds), threads
    (including those of libraries), fds, and gc (a list by generation for each figure)."""
    memory, times = memory_usage(), os.times()
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError:
        threads = threading.active_count()
    generations = gc.get_stats()
    return {
        "rss": memory["rss"],
        "private": _private_bytes(),
        "vms": memory["vms"],
        "cpu_user": times.user,
        "cpu_system": times.system,
        "threads": threads,
        "fds": len(os.listdir("/dev/fd")) - 1,  # without the one that listdir opens
        "gc": {
            name: [generation[name] for generation in generations]
            for name in ("collections", "collected", "uncollectable")
        },
        "uptime": uptime,
    }


def _refuse_unknown(args: StatsArgs) -> None:
    for index, section in enumerate(args.include or ()):
        if section not in SECTIONS:
            raise errors.InvalidArgs(
                f"unknown section {section!r}; known: {', '.join(SECTIONS)}",
                path=f"args.include[{index}]",
                known=list(SECTIONS),
            )
    if args.format not in FORMATS:
        raise errors.InvalidArgs(
            f"unknown format {args.format!r}; known: {', '.join(FORMATS)}",
            path="args.format",
            known=list(FORMATS),
        )


def _overview(worker: Worker, calls: OpenCalls, uptime: float) -> dict[str, Any]:
    """Return the figures that a reply has in addition to its sections if the request names no sections."""
    recorders = [command.recorder for command in worker.commands.values()]
    refused = worker.refused.total()
    return {
        "programs_count": worker.sessions.counted_records,
        "sessions_count": len(worker.sessions),
        "command_count": sum(recorder.calls for recorder in recorders),
        "error_count": sum(recorder.errors for recorder in recorders) + refused,
        "refused_count": refused,
        "in_flight": calls.total,
        "threads_lost": worker.threads.lost,
        "calls_written_off": worker.threads.written_off,
        "uptime": uptime,
        "memory_usage": memory_usage(),
        "dspy_available": worker.has_dspy,
        "gemini_available": worker.has_gemini,
    }


def _worker(worker: Worker, calls: OpenCalls, uptime: float) -> dict[str, Any]:
    return {
        "version": __version__,
        "python": platform.python_version(),
        "pid": os.getpid(),
        "mode": worker.options.mode,
        "adapter": worker.adapter.name,
        "uptime": uptime,
        "rss": memory_usage()["rss"],
        "calls": sum(command.recorder.calls for command in worker.commands.values()),
        "threads": worker.threads.limit,
        "queue": worker.options.queue,
        "threads_lost": worker.threads.lost,
        "calls_written_off": worker.threads.written_off,
        "calls_shed": worker.calls.shed,
        "in_flight": calls.total,
        "queue_depth": calls.total_queued,
        "queue_bytes": worker.calls.bytes,
        "waiting_for_host": worker.threads.waiting,
        "stuck_s": round(worker.stuck_s, 1),
        "log_lines_lost": lines_lost(),
        "sessions": len(worker.sessions),
        "refused": dict(worker.refused),
    }


def _entry(recorder: Recorder, calls: OpenCalls, key: Command | Session, now: int, raw: bool) -> dict[str, Any]:
    return {
        **_summary(recorder.total(), raw),
        "errors_by_category": recorder.errors_by_category,
        "counters": recorder.counters,
        "in_flight": calls.in_flight[key],
        "queue_depth": calls.queued[key],
        "windows": {
            name: {
                "seconds": round(seconds + now % SLOT_NS / 1e9, 3),
                **_summary(recorder.window(seconds, now), raw),
            }
            for name, seconds in WINDOWS.items()
        },
    }


def _summary(histogram: Histogram, raw: bool) -> dict[str, Any]:
    summary = histogram.summary()
    if raw:
        summary["histogram"] = histogram.to_dict()
    return summary
