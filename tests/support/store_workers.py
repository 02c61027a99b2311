"""Workers that share a store, for tests of durable sessions."""

from __future__ import annotations

import itertools
import json

WAIT = 60.0


ids = itertools.count(1)


QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


def call(dispatcher, command, /, session_id="s", **args):
    request = {"id": next(ids), "command": command, "args": args, "session_id": session_id}
    return json.loads(dispatcher.call(json.dumps(request).encode(), WAIT))


def ask(dispatcher, command, /, session_id="s", **args):
    reply = call(dispatcher, command, session_id, **args)
    assert reply["success"], reply
    return reply["result"]
