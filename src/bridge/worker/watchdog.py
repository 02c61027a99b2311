"""The watchdog, which reports a worker whose threads are all stuck, or ends its process."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from bridge._histogram import now_ns
from bridge.telemetry import logs
from bridge.worker import process

if TYPE_CHECKING:
    from bridge.worker.state import Worker

MOST_NAMED = 5  # calls in one line


def start(worker: Worker) -> None:
    """Watch `worker` on a thread, until the process ends. Log when it is stuck, or end the process if it should exit
    then."""
    threading.Thread(target=_watch, args=(worker,), name="bridge-watchdog", daemon=True).start()


def _watch(worker: Worker) -> None:
    pause = worker.options.stuck_after / 4
    while True:
        time.sleep(pause)
        stuck = worker.stuck_s
        worker.may_be_stuck = bool(stuck)
        if not stuck:
            continue
        message = describe(worker, stuck)
        if worker.options.when_stuck == "exit":
            _report(f"{message}; the worker ends")
            process.end_at_once(process.STUCK)
        logs.warn(message)
        while worker.stuck_s >= stuck:  # logged once
            stuck = worker.stuck_s
            time.sleep(pause)
        logs.warn("the threads make progress again")


def _report(message: str) -> None:
    """Log `message`, and wait at most a second for that: the host may take log events and not read them."""
    logging = threading.Thread(target=logs.report, args=(message,), daemon=True)
    logging.start()
    logging.join(1.0)


def describe(worker: Worker, stuck: float) -> str:
    """Return one line about a worker that has been stuck for `stuck` seconds: its threads and its oldest calls."""
    running = [call for call in list(worker.calls.open.values()) if call.running]
    running.sort(key=lambda call: call.received_ns)
    now = now_ns()
    oldest = [
        f"{call.command.name} {logs.shown(call.id)!r} ({(now - call.received_ns) / 1e9:.0f} s)"
        for call in running[:MOST_NAMED]
    ]
    threads = worker.threads
    named = f"; the oldest calls: {', '.join(oldest)}" if oldest else ""
    return (
        f"stuck: none of {threads.limit} threads is free and none has made progress for"
        f" {stuck:.0f} s; {threads.lost} more are with calls that are over{named}"
    )
