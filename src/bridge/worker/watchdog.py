"""Looks after a worker whose threads all hang: says so in the log, and ends it where asked to."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bridge._histogram import now_ns
from bridge.telemetry import logs
from bridge.worker import process

if TYPE_CHECKING:
    from bridge.worker.dispatch import Dispatcher

MOST_NAMED = 5  # calls in one line


def start(dispatcher: Dispatcher, *, exits: bool) -> None:
    """Watch from now on, on a thread of its own. exits: end the process when it is stuck."""
    threading.Thread(target=_watch, args=(dispatcher, exits), name="bridge-watchdog", daemon=True).start()


def _watch(dispatcher: Dispatcher, exits: bool) -> None:
    while True:
        time.sleep(dispatcher.options.stuck_after / 4)
        stuck = dispatcher.stuck_s
        dispatcher.may_be_stuck = bool(stuck)
        if not stuck:
            continue
        message = describe(dispatcher, stuck)
        if exits:
            _say_last(f"{message}; the worker ends")
            process.end_at_once(process.STUCK)
        logs.warn(message)
        while dispatcher.stuck_s >= stuck:  # said once
            stuck = dispatcher.stuck_s
            time.sleep(dispatcher.options.stuck_after / 4)
        logs.warn("the threads make progress again")


def _say_last(message: str) -> None:
    """Log it; a host that takes the logs and does not read must not hold up the end."""
    saying = threading.Thread(target=logs.report, args=(message,), daemon=True)
    saying.start()
    saying.join(1.0)


def describe(dispatcher: Dispatcher, stuck: float) -> str:
    """One line about a stuck worker: how many threads, since when, and the oldest calls."""
    running = [call for call in list(dispatcher.calls.open.values()) if call.running]
    running.sort(key=lambda call: call.received_ns)
    now = now_ns()
    oldest = [
        f"{call.command.name} {logs.shown(call.id)!r} ({(now - call.received_ns) / 1e9:.0f} s)"
        for call in running[:MOST_NAMED]
    ]
    threads = dispatcher.threads
    named = f"; the oldest calls: {', '.join(oldest)}" if oldest else ""
    return (
        f"stuck: none of {threads.limit} threads is free and none has made progress for"
        f" {stuck:.0f} s; {threads.lost} more are with calls that are over{named}"
    )
