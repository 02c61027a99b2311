"""What a worker or a double of it answers to the conversations of mock_conversations.py: tests/vectors/mock.json.

Values that differ in each run are null. Of the outputs of programs, which doubles make up, only the types matter.
"""

from __future__ import annotations

import json
import queue
from typing import Any

from bridge import Dispatcher, Options
from bridge._framing import Frame, Outbox
from bridge.adapters.dspy import adapter
from mock_conversations import CONVERSATIONS as GENERAL
from mock_conversations import FLAGS, METRICS, PROGRAMS, TOOLS
from mock_dspy_conversations import CONVERSATIONS as OF_DSPY

CONVERSATIONS = {**OF_DSPY, **GENERAL}
VOLATILE = ("bytes", "created_at", "document", "execution_time", "idle_s", "last_executed", "timestamp", "uptime")


class Conversation:
    """Requests to a dispatcher, whose host answers with `TOOLS` and `METRICS`."""

    def __init__(self, dispatcher: Any) -> None:
        self._dispatcher = dispatcher
        self._arrived: queue.SimpleQueue[Outbox] = queue.SimpleQueue()
        self._id = 0
        self.ask("hello", {"offers": {"tools": True}})

    def ask(self, command: str, args: Any, session_id: str | None = None) -> dict[str, Any]:
        """Return the reply to a request, and in `tools` the calls of tools that came before it."""
        self._id += 1
        request = {"id": self._id, "command": command, "args": args, "stream": command == "execute_program"}
        if session_id is not None:
            request["session_id"] = session_id
        self._send(request)
        tools = []
        while "success" not in (message := json.loads(self._arrived.get(timeout=60).payload())):
            if "command" in message:
                name = message["args"]["name"]
                self._send({"id": message["id"], "success": True, "result": {**TOOLS, **METRICS}[name]})
                if name in TOOLS:
                    tools.append(message["args"])
        reply = {key: message[key] for key in ("result", "code", "error", "details") if key in message}
        return steady(reply | ({"tools": tools} if tools else {}))

    def _send(self, message: dict[str, Any]) -> None:
        outbox = Outbox()
        self._dispatcher.answer(Frame.of(json.dumps(message).encode()), outbox, self._arrived.put)
        if len(outbox):
            self._arrived.put(outbox)


def steady(value: Any) -> Any:
    """Return a reply with null in place of what differs in each run."""
    if isinstance(value, dict):
        return {key: None if key in VOLATILE else steady(each) for key, each in value.items()}
    return [steady(each) for each in value] if isinstance(value, list) else value


def replies(name: str, dispatcher: Any) -> list[dict[str, Any]]:
    """Return the replies of a worker or a double to one conversation."""
    with dispatcher:
        conversation = Conversation(dispatcher)
        return [conversation.ask(*request) for request in CONVERSATIONS[name]]


def vectors() -> dict[str, Any]:
    """Return all conversations with the replies of a worker."""
    found: dict[str, Any] = {}
    for name, requests in CONVERSATIONS.items():
        flags = FLAGS.get(name, {})
        given = ({"command": each[0], "args": each[1], "session_id": (*each, None)[2]} for each in requests)
        answered = replies(name, worker(**flags))
        exchanges = [{"request": one, "reply": reply} for one, reply in zip(given, answered, strict=True)]
        found[name] = {"flags": flags, "programs": PROGRAMS.get(name, {}), "exchanges": exchanges}
    return {"volatile": VOLATILE, "tools": TOOLS, "metrics": METRICS, "commands": commands(), "conversations": found}


def commands() -> dict[str, Any]:
    """Return the lane, the idempotence and the names of the args of each command of a worker."""
    described = json.loads(worker().call(b'{"id": 1, "command": "describe"}'))["result"]["commands"]
    return {
        name: {"lane": spec["lane"], "idempotent": spec["idempotent"], "args": sorted(names_in(spec["args"]))}
        for name, spec in described.items()
    }


def names_in(schema: dict[str, Any]) -> list[str]:
    """Return the names of the properties of a JSON Schema, which may be a reference."""
    found = schema.get("$defs", {}).get(schema.get("$ref", "").rpartition("/")[2], schema)
    return [name for name in found.get("properties", {}) if name != "session_id"]


def worker(**flags: Any) -> Dispatcher:
    """Return a worker with DSPy, without a pipe."""
    dispatcher = Dispatcher(adapter, Options(**flags))
    dispatcher.answer = dispatcher.path.answer
    return dispatcher
