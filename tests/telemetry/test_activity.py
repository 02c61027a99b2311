"""Listeners: order and nesting of activities, and listeners that raise."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest

from bridge import Adapter, Dispatcher, Options, activity, errors, listen
from bridge._framing import Frame, Outbox
from peer import wait_until


class Args(msgspec.Struct):
    value: int = 0


class Listener:
    """Records calls as (method, kind, name), and the activities and errors."""

    def __init__(self):
        self.told = []
        self.activities = []
        self.errors = []

    def started(self, activity):
        self.told.append(("started", activity.kind, activity.name))
        self.activities.append(activity)
        assert activity.ended_ns == 0

    def complete(self, activity):
        self.told.append(("complete", activity.kind, activity.name))
        assert activity.ended_ns >= activity.started_ns

    def failed(self, activity, error):
        self.told.append(("failed", activity.kind, activity.name))
        self.errors.append(error)

    def ends(self):
        return [(what, name) for what, _, name in self.told if what != "started"]


@pytest.fixture
def dispatcher(gate):
    adapter = Adapter("told")

    @adapter.command("inline", Args, lane="inline")
    @adapter.command("on_thread", Args)
    def nested(args, context):
        with activity("stage", "outer", size=1) as facts:
            with activity("lm", "inner"):
                pass
            facts["result"] = 2
        return {"value": 1 / args.value}

    @adapter.command("stage_fails", Args)
    def stage_fails(args, context):
        with activity("stage", "outer"):
            raise KeyError("x")

    @adapter.command("wait", Args, lane="session")
    def wait(args, context):
        gate.wait(30)
        context.check()
        return {}

    @adapter.command("not_encodable", Args)
    def not_encodable(args, context):
        return object()

    @adapter.command("large", Args)
    def large(args, context):
        return "x" * 10_000

    return Dispatcher(adapter, Options(threads=2, max_frame=4096))


@pytest.fixture
def listener():
    listener = Listener()
    stop = listen(listener)
    yield listener
    stop()


def call(dispatcher, command, value=1, **more):
    request = {"id": 1, "command": command, "args": {"value": value}, **more}
    return json.loads(dispatcher.call(json.dumps(request).encode(), 30))


class Replies:
    """Requests that are sent without waiting for their replies."""

    def __init__(self, dispatcher):
        self._dispatcher = dispatcher
        self._arrived = threading.Condition()
        self.by_id = {}

    def send(self, request_id, command, **more):
        request = {"id": request_id, "command": command, **more}
        outbox = Outbox()
        frame = Frame.of(json.dumps(request).encode())
        self._dispatcher.path.answer(frame, outbox, self._deliver)
        if len(outbox):
            self._deliver(outbox)

    def wait_for(self, *ids):
        with self._arrived:
            assert self._arrived.wait_for(lambda: all(each in self.by_id for each in ids), 30)
        return [self.by_id[each] for each in ids]

    def _deliver(self, outbox):
        reply = json.loads(outbox.payload())
        with self._arrived:
            self.by_id[reply["id"]] = reply
            self._arrived.notify_all()


@pytest.mark.parametrize("command", ["inline", "on_thread"])
def test_a_call_and_its_parts(dispatcher, listener, command):
    """They start from the outside in and end in reverse, with the call's names; facts are present at the end."""
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert call(dispatcher, command, session_id="s", traceparent=parent)["success"]
    assert listener.told == [
        ("started", "call", command),
        ("started", "stage", "outer"),
        ("started", "lm", "inner"),
        ("complete", "lm", "inner"),
        ("complete", "stage", "outer"),
        ("complete", "call", command),
    ]
    outermost, stage, lm = listener.activities
    assert (outermost.parent, stage.parent, lm.parent) == (None, outermost, stage)
    for each in listener.activities:
        assert (each.request_id, each.session_id, each.command) == (1, "s", command)
        assert each.traceparent == parent
    assert stage.facts == {"size": 1, "result": 2}
    assert outermost.facts["queued_ns"] >= 0


def test_the_session_of_a_call_that_names_none(dispatcher, listener):
    """It is the session in which the call ran; inline calls have none."""
    for command in ("on_thread", "inline"):
        call(dispatcher, command)
    assert [each.session_id for each in listener.activities] == ["default"] * 3 + [None] * 3


@pytest.mark.parametrize("command", ["inline", "on_thread"])
def test_a_failing_call(dispatcher, listener, command):
    """Its error is the one that its caller gets."""
    reply = call(dispatcher, command, 0)
    assert listener.told[-1] == ("failed", "call", command)
    (error,) = listener.errors
    assert isinstance(error, errors.HandlerError)
    assert str(error) == reply["error"]


def test_a_failing_stage(dispatcher, listener):
    """Its error is the exception; then the call fails, too."""
    call(dispatcher, "stage_fails")
    assert listener.ends() == [("failed", "outer"), ("failed", "stage_fails")]
    assert [type(error) for error in listener.errors] == [KeyError, errors.HandlerError]


@pytest.mark.parametrize(
    ("command", "value", "code"),
    [
        ("on_thread", "x", "invalid_args"),
        ("not_encodable", 1, "not_encodable"),
        ("large", 1, "reply_too_large"),
    ],
)
def test_calls_that_fail_before_and_after_their_handler(dispatcher, listener, command, value, code):
    """They are failed calls, in the statistics too."""
    assert call(dispatcher, command, value)["code"] == code
    assert listener.told == [("started", "call", command), ("failed", "call", command)]
    assert listener.errors[0].code == code
    assert dispatcher.commands[command].recorder.errors == 1


def test_a_request_that_is_refused(dispatcher, listener):
    """It starts and fails at once; an unknown name is not reported as a command."""
    call(dispatcher, "nonsense")
    assert listener.told == [("started", "call", "_OTHER"), ("failed", "call", "_OTHER")]
    assert listener.activities[0].command == "nonsense"
    assert listener.errors[0].code == "unknown_command"
    call(dispatcher, "on_thread", session_id="a", timeout_ms="x")
    assert len(listener.told) == 2, "what is no request is no call"


def test_a_call_that_is_cancelled_while_it_runs(dispatcher, listener, gate):
    """It ends when its handler returns, with the error that its caller got."""
    replies = Replies(dispatcher)
    replies.send(1, "wait")
    wait_until(lambda: listener.told)
    replies.send(2, "cancel", args={"id": 1})
    replies.wait_for(1, 2)
    assert ("failed", "wait") not in listener.ends()
    gate.set()
    wait_until(lambda: len(listener.ends()) >= 2)
    assert listener.ends() == [("complete", "cancel"), ("failed", "wait")]
    assert listener.errors[0].code == "cancelled"


def test_a_call_that_is_cancelled_before_it_runs(dispatcher, listener, gate):
    """It starts and fails once, when it is cancelled."""
    replies = Replies(dispatcher)
    replies.send(1, "wait")
    replies.send(2, "wait", timeout_ms=60_000)
    replies.send(3, "cancel", args={"id": 2})
    replies.wait_for(2, 3)
    second = [each for each in listener.activities if each.request_id == 2]
    assert len(second) == 1
    assert second[0].ended_ns
    assert second[0].parent is None
    assert [error.code for error in listener.errors] == ["cancelled"]
    gate.set()
    replies.wait_for(1)
    assert call(dispatcher, "wait")["success"]
    assert len([each for each in listener.activities if each.request_id == 2]) == 1


def test_a_call_that_is_late_before_it_runs(dispatcher, listener, gate):
    """It starts and fails once, when its deadline passes."""
    replies = Replies(dispatcher)
    replies.send(1, "wait")
    replies.send(2, "wait", timeout_ms=1)
    replies.wait_for(2)
    assert [error.code for error in listener.errors] == ["deadline_exceeded"]


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_listener_that_raises_does_not_affect_the_call(dispatcher, listener, caplog, raised):
    """The exception is logged; the call and the other listeners continue."""

    class Broken:
        def started(self, activity):
            raise raised("broken")

        complete = failed = started

    stop = listen(Broken())
    try:
        assert call(dispatcher, "inline")["success"]
        assert call(dispatcher, "on_thread")["success"]
    finally:
        stop()
    assert [end for end in listener.ends() if end[1] != "inner"] == [
        ("complete", "outer"),
        ("complete", "inline"),
        ("complete", "outer"),
        ("complete", "on_thread"),
    ]
    assert "a listener failed in started" in caplog.text


def test_a_removed_listener_is_not_called(dispatcher):
    """It still gets the end of calls whose start it got; the facts of a stage are recorded anyway."""
    first, second = Listener(), Listener()
    stop_first, stop_second = listen(first), listen(second)
    stop_first()
    stop_first()
    call(dispatcher, "inline")
    stop_second()
    call(dispatcher, "inline")
    assert first.told == []
    assert len(second.told) == 6
    with activity("stage", "silent", size=1) as facts:
        facts["more"] = 2
    assert facts == {"size": 1, "more": 2}


@pytest.mark.parametrize("command", ["inline", "on_thread"])
def test_a_listener_that_wants_some_calls(dispatcher, command):
    """It selects calls by traceparent and gets their parts, but nothing outside of calls."""
    choosy = Listener()
    stop = listen(choosy, wants=lambda traceparent: traceparent == "this one")
    try:
        call(dispatcher, command)
        call(dispatcher, command, traceparent="another")
        with activity("lm", "alone"):
            pass
        assert choosy.told == []
        call(dispatcher, command, traceparent="this one")
        names = [command, "outer", "inner"]
        assert [name for _, _, name in choosy.told] == names + names[::-1]
    finally:
        stop()


def test_listeners_of_one_call_get_the_same_activities(dispatcher, listener):
    """Listeners for all calls and those for this one get them; no others do."""
    others = [Listener(), Listener()]
    stops = [
        listen(each, wants=lambda traceparent, wanted=wanted: traceparent == wanted)
        for each, wanted in zip(others, ("a", "b"), strict=True)
    ]
    call(dispatcher, "inline", traceparent="a")
    for stop in stops:
        stop()
    assert others[0].told == listener.told
    assert others[0].activities == listener.activities
    assert others[1].told == []


def test_activities_outside_of_calls(listener):
    """They belong to no call."""
    with activity("lm", "alone"):
        pass
    (only,) = listener.activities
    assert (only.parent, only.request_id, only.command) == (None, None, None)
