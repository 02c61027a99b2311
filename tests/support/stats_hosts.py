"""An adapter and a host for tests of get_stats."""

from __future__ import annotations

import json
import threading

import msgspec

from bridge import Adapter, Dispatcher, Options
from bridge._framing import Frame, Outbox
from peer import wait_until


class Size(msgspec.Struct):
    size: int = 0


def make_adapter(gate: threading.Event) -> Adapter:
    adapter = Adapter("counting")

    @adapter.command("ask", Size)
    def ask(args, context):
        """Count as an adapter does that calls language models."""
        context.count("lm_calls")
        context.count("input_tokens", args.size)
        context.count("cost_usd", 0.25)
        return {}

    @adapter.command("ask_inline", lane="inline")
    def ask_inline(args, context):
        context.count("lm_calls", 10)
        return {}

    @adapter.command("count_wrongly")
    def count_wrongly(args, context):
        context.count("lm calls")

    @adapter.command("large", Size)
    def large(args, context):
        return {"text": "x" * args.size}

    @adapter.command("fail")
    def fail(args, context):
        raise KeyError("no")

    @adapter.command("unencodable")
    def unencodable(args, context):
        return {"value": object()}

    @adapter.command("wait")
    def wait(args, context):
        gate.wait(30)
        return {}

    @adapter.command("change", lane="session")
    def change(args, context):
        gate.wait(30)
        return {}

    return adapter


class Host:
    """A dispatcher, and the replies that it sent later."""

    def __init__(self, gate, **options):
        self.dispatcher = Dispatcher(make_adapter(gate), Options(**options))
        self.replies = {}
        self.arrived = threading.Condition()

    def call(self, command, args=None, **more):
        request = {"id": "call", "command": command, "args": args or {}, **more}
        return json.loads(self.dispatcher.call(json.dumps(request).encode(), 30))

    def send(self, request_id, command, **more):
        """Send a request without waiting for its reply."""
        request = {"id": request_id, "command": command, **more}
        self.dispatcher.path.answer(Frame.of(json.dumps(request).encode()), Outbox(), self.keep_reply)

    def keep_reply(self, outbox):
        reply = json.loads(outbox.payload())
        with self.arrived:
            self.replies[reply["id"]] = reply
            self.arrived.notify_all()

    def wait_for(self, *ids):
        with self.arrived:
            assert self.arrived.wait_for(lambda: all(i in self.replies for i in ids), 30)

    def stats(self, *include, **args):
        reply = self.call("get_stats", {"include": list(include), **args})
        assert reply["success"], reply
        return reply["result"]

    def text(self, *include, **args):
        return self.stats(*include, format="prometheus", **args)["text"]

    def wait_until_running(self, count):
        running = self.dispatcher.calls.open
        wait_until(lambda: sum(call.running for call in list(running.values())) == count)
