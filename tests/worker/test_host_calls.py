"""What the worker takes as the reply to its call of the host, and what it does with other messages."""

from __future__ import annotations

from queue import SimpleQueue

import pytest

from bridge import Adapter, Dispatcher, errors
from bridge._framing import Frame, Outbox
from bridge.wire.codec import FORMATS

adapter = Adapter("asking")


@adapter.command("ask")
def ask(args, context):
    return context.call_host("question", {})


@adapter.command("ask_anyway")
def ask_anyway(args, context):
    try:
        return context.call_host("question", {})
    except errors.BridgeError as error:
        return str(error)


class Host:
    """Sends messages of one format to a dispatcher, and receives what comes back."""

    def __init__(self, dispatcher, format):
        self._dispatcher = dispatcher
        self._format = format
        self._frames = SimpleQueue()
        self.send({"id": 0, "command": "hello", "args": {"offers": {"tools": True}}})

    def send(self, message):
        """Send a message and return the reply to it, None if there is none yet."""
        outbox = Outbox()
        self._dispatcher.path.answer(Frame.of(self._format.encode(message)), outbox, self._frames.put)
        return self._format.decode(outbox.payload()) if len(outbox) else None

    def receive(self):
        return self._format.decode(self._frames.get(timeout=10).payload())


@pytest.fixture(params=FORMATS, ids=lambda format: format.name)
def host(request):
    with Dispatcher(adapter) as dispatcher:
        yield Host(dispatcher, request.param)


ODD = [
    {"timing": {}},
    {"timing": {"run_us": 1.5}},
    {"session_id": 5},
    {"timeout_ms": "soon"},
    {"stream": "yes"},
    {"traceparent": {}},
    {"command": None},
    {"command": 5},
    {"args": [1]},
    {"type": "protocol_negotiation"},
    {"timestamp": None, "severity": 1, "other": [{}]},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_a_reply_may_have_fields_that_a_reply_does_not_use(host, odd):
    """Whatever their types are."""
    assert host.send({"id": 1, "command": "ask"}) is None
    asked = host.receive()
    assert host.send({"id": asked["id"], "success": True, "result": "yes", **odd}) is None
    reply = host.receive()
    assert (reply["id"], reply["success"], reply["result"]) == (1, True, "yes")
    assert host.send({"id": asked["id"], "success": True, **odd}) is None, "nobody waits for it any more"


@pytest.mark.parametrize(
    "message",
    [{"success": "yes"}, {"success": None}, {"success": True, "error": 5}, {"success": False, "details": []}, {}],
    ids=str,
)
def test_a_reply_that_cannot_be_read(host, message):
    """The call fails if it still waits for the reply; later the message is no valid request."""
    assert host.send({"id": 1, "command": "ask"}) is None
    asked = host.receive()
    assert host.send({"id": asked["id"], **message}) is None
    reply = host.receive()
    assert (reply["id"], reply["code"]) == (1, "invalid_frame")
    late = host.send({"id": asked["id"], **message})
    assert (late["id"], late["code"]) == (asked["id"], "invalid_request")
    assert late["error"] == "not a request: Object missing required field `command`"


@pytest.mark.parametrize(
    ("message", "protocol"),
    [
        ({}, "json"),
        ({"supported": ["cbor", "etf"]}, "etf"),
        ({"preferred": "msgpack", "id": None}, "msgpack"),
        ({"id": 1, "timing": {}, "session_id": 5}, "json"),
        ({"success": 0}, "json"),
        ({"success": False}, "json"),
    ],
    ids=str,
)
def test_a_negotiation_may_have_other_fields(host, message, protocol):
    reply = host.send({"type": "protocol_negotiation", **message})
    assert (reply["type"], reply["protocol"]) == ("protocol_selected", protocol)


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ({"type": "other"}, "field `id`"),
        ({"id": 1, "success": "yes"}, "field `command`"),
        ({"id": None, "command": "ping"}, "`$.id`"),
        ({"id": 1, "command": None}, "`$.command`"),
        ({"id": 1, "command": "ping", "timing": {}}, "`$.timing`"),
    ],
    ids=str,
)
def test_a_message_that_is_nothing(host, message, wrong):
    reply = host.send(message)
    assert (reply["id"], reply["code"]) == (message.get("id"), "invalid_request")
    assert reply["error"].endswith(wrong)


def test_a_host_that_does_not_answer_ends_the_call_with_its_deadline(host):
    """Also if the handler would take any error of the host for an answer."""
    for number in range(4):
        assert host.send({"id": number, "command": "ask_anyway", "timeout_ms": 300}) is None
        assert host.receive()["command"] == "question"
        assert host.receive()["code"] == "deadline_exceeded"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({}, "handler_error"),
        ({"code": "odd"}, "handler_error"),
        ({"code": "internal"}, "handler_error"),
        ({"code": "overloaded"}, "overloaded"),
    ],
)
def test_an_error_of_the_host_is_no_fault_of_the_worker(host, sent, code):
    host.send({"id": 1, "command": "ask"})
    host.send({"id": host.receive()["id"], "success": False, "error": "no answer", **sent})
    reply = host.receive()
    assert (reply["error"], reply["code"]) == ("no answer", code)
