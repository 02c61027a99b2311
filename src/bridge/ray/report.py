"""What a pool on several nodes reports about itself. Each node tells what its own pool does."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bridge import errors
from bridge.pool.report import ANSWER_SECONDS, ask
from bridge.pool.slots import Slot, Slots
from bridge.pool.statistics import merged_pools
from bridge.ray.nodes import node_of

STATUS_SECONDS = 2.0  # for the status of a node, which waits for nothing there


def status(local: dict[str, Any], slots: Slots) -> dict[str, Any]:
    """Return the status of the nodes as slots, `local`, with the workers of each: None for a node that is silent."""
    replies = {slot.number: reply for slot, reply in _ask_all(slots, "node_status", {}, STATUS_SECONDS).items()}
    with slots.changed:
        nodes = {slot.number: node_of(slot) for slot in slots.all}
    workers: Counter[str] = Counter()
    for each in local["slots"]:
        node, reply = nodes.get(each["slot"]), replies.get(each["slot"])
        each["node"], each["host"] = node and node.id, node and node.name
        each["workers"] = None if reply is None or isinstance(reply, BaseException) else reply["slots"]
        workers.update(worker["state"] for worker in each["workers"] or ())
    return {**local, "workers": dict(workers), "nodes": local["workers"]}


def statistics(slots: Slots) -> dict[str, Any]:
    """Return the statistics of all nodes together. One that does not answer in time is left out."""
    replies = _ask_all(slots, "node_stats", {}, ANSWER_SECONDS + STATUS_SECONDS).values()
    return merged_pools([reply for reply in replies if not isinstance(reply, BaseException)])


def health(slots: Slots, timeout: float) -> dict[str, Any]:
    """Return whether the workers of all nodes answer a ping within `timeout` seconds."""
    with slots.changed:
        every = list(slots.all)
    replies = _ask_all(slots, "node_health", {"timeout": timeout}, timeout + STATUS_SECONDS)
    nodes = [_health_of(slot, replies.get(slot)) for slot in every]
    states = {node["status"] for node in nodes}
    return {
        "status": "down" if states <= {"down"} else "healthy" if states == {"healthy"} else "degraded",
        "slots": nodes,
    }


def _health_of(slot: Slot, reply: Any) -> dict[str, Any]:
    found = {"slot": slot.number, "state": slot.state, "pid": slot.pid, "node": node_of(slot).id}
    if isinstance(reply, dict):
        return {**found, "answers": True, "status": reply["status"], "workers": reply["slots"], "error": None}
    error = errors.text_of(reply) if isinstance(reply, BaseException) else None
    return {**found, "answers": False, "status": "down", "workers": None, "error": error}


def _ask_all(slots: Slots, command: str, args: dict[str, Any], timeout: float) -> dict[Slot, Any]:
    with slots.changed:
        usable = [slot for slot in slots.all if slot.is_usable]
    return ask(usable, command, args, timeout)
