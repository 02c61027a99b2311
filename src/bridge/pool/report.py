"""What a pool reports about itself: its status, health, statistics and events."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from time import monotonic
from typing import Any

from bridge import errors
from bridge.host.open_calls import OpenCall
from bridge.pool.journal import Journal
from bridge.pool.sessions import Sessions
from bridge.pool.slots import OnTransition, Slot, Slots
from bridge.pool.statistics import INCLUDED, merged

ANSWER_SECONDS = 5.0  # for a worker's statistics

_log = logging.getLogger("bridge.pool")


def events_to(name: str, listener: OnTransition | None) -> OnTransition:
    """Return what reports an event of the pool `name`: to the log, and to the user's listener."""

    def report(event: dict[str, Any]) -> None:
        event = {"pool": name, **event}
        _log.debug("%s", event)
        if listener is not None:
            try:
                listener(event)
            except Exception:
                _log.exception("the listener to the events of a pool failed")

    return report


def status(name: str, slots: Slots, sessions: Sessions, journal: Journal) -> dict[str, Any]:
    """Return how many workers, calls and sessions there are, and one map for each slot."""
    counts, now = sessions.counts(), monotonic()
    with slots.changed:
        every = list(slots.all)
    return {
        "pool": name,
        "workers": dict(Counter(slot.state for slot in every)),
        "in_flight": sum(slot.calls_of_users() for slot in every),
        "sessions": len(sessions),
        "shared_changes": len(journal),
        "slots": [
            {
                "slot": slot.number,
                "state": slot.state,
                "pid": slot.pid,
                "in_flight": slot.calls_of_users(),
                "served": slot.served,
                "sessions": counts.get(slot, 0),
                "session_id": slot.session_id,
                "seconds": round(now - slot.since, 3),
            }
            for slot in every
        ],
    }


def statistics(slots: Sequence[Slot]) -> dict[str, Any]:
    """Return the statistics of several workers together. One that does not answer in time is left out."""
    replies = ask(slots, "get_stats", {"include": list(INCLUDED)}, ANSWER_SECONDS)
    return merged([reply for reply in replies.values() if not isinstance(reply, BaseException)])


def health(slots: Slots, timeout: float) -> dict[str, Any]:
    """Return whether the workers answer a ping within `timeout` seconds."""
    with slots.changed:
        every = list(slots.all)
    replies = ask([slot for slot in every if slot.is_usable], "ping", {}, timeout)
    answers = [slot for slot, reply in replies.items() if not isinstance(reply, BaseException)]
    return {
        "status": "down" if not answers else "healthy" if len(answers) == len(every) else "degraded",
        "slots": [
            {
                "slot": slot.number,
                "state": slot.state,
                "pid": slot.pid,
                "answers": slot in answers,
                "error": errors.text_of(reply) if isinstance(reply := replies.get(slot), BaseException) else None,
            }
            for slot in every
        ],
    }


def ask(slots: Sequence[Slot], command: str, args: dict[str, Any], timeout: float) -> dict[Slot, Any]:
    """Ask workers at the same time, and return each one's result or error."""
    calls: dict[Slot, OpenCall | errors.BridgeError] = {}
    for slot in slots:
        try:
            calls[slot] = call = slot.open(command, timeout)
            slot.connection.request(call, args, None, None)
        except errors.BridgeError as error:
            calls[slot] = error
    replies: dict[Slot, Any] = {}
    for slot, asked in calls.items():
        try:
            replies[slot] = asked.result() if isinstance(asked, OpenCall) else asked
        except errors.BridgeError as error:
            replies[slot] = error
    return replies
