"""Adapters for tests of sessions."""

from __future__ import annotations

import itertools
import json
import threading

import msgspec

from bridge import Adapter
from peer import wait_until

WAIT = 30.0


class PutArgs(msgspec.Struct):
    kind: str = "program"
    name: str = "p"
    size: int = 1


def make_adapter(counted="program"):
    adapter = Adapter("keeper", counted=counted)
    adapter.gate = threading.Event()

    @adapter.command("put", PutArgs, lane="session")
    def put(args, context):
        """Store that many bytes in the session."""
        context.session.records.put(args.kind, args.name, bytes(args.size))
        return {}

    @adapter.command("wait")
    def wait(args, context):
        """Wait until the gate opens."""
        return {"opened": adapter.gate.wait(WAIT)}

    return adapter


ids = itertools.count(1)


def call(dispatcher, command, /, session_id=None, **args):
    request = {"id": next(ids), "command": command, "args": args}
    if session_id is not None:
        request["session_id"] = session_id
    return json.loads(dispatcher.call(json.dumps(request).encode(), WAIT))


def ask(dispatcher, command, /, session_id=None, **args):
    reply = call(dispatcher, command, session_id, **args)
    assert reply["success"], reply
    return reply["result"]


def names(dispatcher):
    return {entry["session_id"] for entry in ask(dispatcher, "list_sessions")["sessions"]}


def in_background(dispatcher, command, session_id):
    results = []
    before = len(dispatcher.calls.open)
    thread = threading.Thread(target=lambda: results.append(ask(dispatcher, command, session_id)), daemon=True)
    thread.start()
    wait_until(lambda: len(dispatcher.calls.open) > before)

    def done():
        thread.join(WAIT)
        return results[0]

    return done
