"""Helpers for tests of keys and of the addresses that they may be sent to."""

from __future__ import annotations

import json

KEY = "sk-own-0123456789abcdef"


SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


def call(dispatcher, command, session_id=None, request_id=1, **args):
    request = {"id": request_id, "command": command, "args": args, "session_id": session_id}
    return json.loads(dispatcher.call(json.dumps(request).encode(), 60))


def configure(dispatcher, **args):
    return call(dispatcher, "configure_lm", **args)
