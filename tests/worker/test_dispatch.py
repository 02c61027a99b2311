"""The dispatcher without any pipe: request bytes in, reply bytes out."""

from __future__ import annotations

import json
import threading

import msgspec
import pytest

from bridge import Adapter, Dispatcher, Options
from bridge._framing import Frame, Outbox
from bridge.adapters.echo import adapter as echo
from peer import wait_until


class Step(msgspec.Struct):
    session_id: str | None = None
    name: str = ""


def make_adapter(gate: threading.Event, seen: list[str]) -> Adapter:
    """Return an adapter: change_slowly keeps its session's turn until `gate` is set; run_slowly releases it."""
    adapter = Adapter("steps")

    @adapter.command("change_slowly", Step, lane="session")
    def change_slowly(args, context):
        gate.wait(30)
        seen.append(args.name)
        return {}

    @adapter.command("change", Step, lane="session")
    def change(args, context):
        seen.append(args.name)
        return {}

    @adapter.command("run_slowly", Step, lane="session")
    def run_slowly(args, context):
        seen.append(args.name)
        context.release()
        gate.wait(30)
        return {}

    @adapter.command("run_and_change", Step, lane="run")
    def run_and_change(args, context):
        seen.append(f"{args.name} runs")
        context.release()
        while not seen[-1].startswith("go"):
            context.wait(0.001)
        context.take_turn()
        seen.append(f"{args.name} changes")
        return {"has_turn": context.has_turn}

    @adapter.command("read", Step)
    def read(args, context):
        return {"seen": list(seen)}

    return adapter


@pytest.fixture
def seen():
    return []


@pytest.fixture
def steps(gate, seen):
    return Dispatcher(make_adapter(gate, seen))


@pytest.fixture
def dispatcher():
    return Dispatcher(echo, Options(worker_id="w1"))


def call(dispatcher, command, args=None, request_id=1, timeout=30):
    request = {"id": request_id, "command": command, "args": args or {}}
    return json.loads(dispatcher.call(json.dumps(request).encode(), timeout))


def in_background(dispatcher, *arguments):
    """Start a call on a thread, and return a function that waits for its reply."""
    replies = []
    thread = threading.Thread(target=lambda: replies.append(call(dispatcher, *arguments)))
    thread.start()

    def reply():
        thread.join(30)
        return replies[0]

    return reply


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_buffer_is_a_request(dispatcher, kind):
    """Requests may be any bytes-like object."""
    reply = dispatcher.call(kind(b'{"id": 1, "command": "ping"}'))
    assert isinstance(reply, bytes)
    assert msgspec.json.decode(reply)["result"]["worker_id"] == "w1"


def test_replies_are_in_the_format_of_their_request(dispatcher):
    """MessagePack replies have four keys in this order (0x84)."""
    reply = dispatcher.call(msgspec.msgpack.encode({"id": 5, "command": "ping", "args": {}}))
    assert reply[0] == 0x84
    assert list(msgspec.msgpack.decode(reply)) == ["id", "success", "result", "timestamp"]


def test_every_reply_starts_with_its_id(dispatcher):
    """A router does not have to decode the whole reply."""
    for command in ("ping", "nope", "sleep"):
        reply = dispatcher.call(json.dumps({"args": {}, "command": command, "id": 77}).encode())
        assert reply.startswith(b'{"id":77,')


def test_an_empty_request_is_answered(dispatcher):
    """Heartbeats belong to the pipe; here an empty request is an error."""
    assert json.loads(dispatcher.call(b""))["code"] == "invalid_frame"


def test_missing_and_null_args_are_an_empty_map(dispatcher):
    """As hosts send them."""
    for request in (
        b'{"id": 1, "command": "sleep"}',
        b'{"id": 1, "command": "sleep", "args": null}',
        msgspec.msgpack.encode({"id": 1, "command": "sleep", "args": None}),
    ):
        assert b"slept" in dispatcher.call(request)


def test_negotiation(dispatcher):
    """The reply names the preferred format if it is known, else JSON, in the request's format."""

    def negotiate(**offer):
        request = {"type": "protocol_negotiation", "timestamp": "now", **offer}
        reply = json.loads(dispatcher.call(json.dumps(request).encode()))
        assert reply["type"] == "protocol_selected"
        assert reply["timestamp"]
        return reply["protocol"]

    assert negotiate(supported=["msgpack", "json"], preferred="msgpack") == "msgpack"
    assert negotiate(supported=["msgpack", "json"], preferred="json") == "json"
    assert negotiate(supported=["bert", "msgpack"], preferred="bert") == "msgpack"
    assert negotiate(supported=["bert"]) == "json"
    forced = Dispatcher(echo, Options(protocol="json"))
    reply = forced.call(b'{"type": "protocol_negotiation", "preferred": "msgpack"}')
    assert json.loads(reply)["protocol"] == "json"


def test_later_calls_of_a_session_wait_for_its_changes(steps, gate, seen):
    """Changes take effect in order of arrival; other sessions do not wait."""
    first = in_background(steps, "change_slowly", {"name": "first", "session_id": "a"}, 1)
    wait_until(lambda: steps.threads.unfinished)
    second = in_background(steps, "change", {"name": "second", "session_id": "a"}, 2)
    third = in_background(steps, "read", {"session_id": "a"}, 3)
    assert call(steps, "change", {"name": "other", "session_id": "b"}, 4)["success"]
    assert seen == ["other"]
    gate.set()
    assert first()["success"]
    assert second()["success"]
    assert set(third()["result"]["seen"]) >= {"other", "first"}
    assert seen == ["other", "first", "second"]


def test_calls_that_released_their_turn_run_at_once(steps, gate, seen):
    """A long run does not block its session."""
    run = in_background(steps, "run_slowly", {"name": "run"}, 1)
    wait_until(lambda: seen)
    assert call(steps, "change", {"name": "change"}, 2)["success"]
    assert call(steps, "ping", {}, 3)["success"]
    gate.set()
    assert run()["success"]


def test_a_run_takes_its_turn_again(steps, gate, seen):
    """It waits for earlier changes of the session, and later ones wait for it."""
    run = in_background(steps, "run_and_change", {"name": "run"}, 1)
    wait_until(lambda: seen == ["run runs"])
    earlier = in_background(steps, "change_slowly", {"name": "go"}, 2)
    wait_until(lambda: steps.threads.unfinished == 2)
    seen.append("go")
    wait_until(lambda: steps.calls.open[1].turn is not None and not steps.calls.open[1].has_turn)
    gate.set()
    assert earlier()["success"]
    assert run()["result"] == {"has_turn": True}
    assert call(steps, "change", {"name": "later"}, 3)["success"]
    assert seen == ["run runs", "go", "go", "run changes", "later"]


def test_a_run_whose_session_has_ended_changes_nothing(steps, gate, seen):
    """It would change a session that nobody sees any more."""
    run = in_background(steps, "run_and_change", {"name": "run", "session_id": "a"}, 1)
    wait_until(lambda: seen == ["run runs"])
    assert call(steps, "cleanup_session", {"session_id": "a"}, 2)["success"]
    seen.append("go")
    assert run()["code"] == "session_not_found"
    assert seen == ["run runs", "go"]


def test_a_run_that_waits_for_its_turn_can_be_cancelled(steps, gate, seen):
    """The change that it waits for goes on."""
    run = in_background(steps, "run_and_change", {"name": "run"}, 1)
    wait_until(lambda: seen == ["run runs"])
    change = in_background(steps, "change_slowly", {"name": "change"}, 2)
    wait_until(lambda: steps.threads.unfinished == 2)
    seen.append("go")
    assert call(steps, "cancel", {"id": 1}, 3)["success"]
    assert run()["code"] == "cancelled"
    gate.set()
    assert change()["success"]
    assert call(steps, "change", {"name": "later"}, 4)["success"]
    assert seen == ["run runs", "go", "change", "later"]


def test_ending_sessions_waits_for_their_changes_only(steps, gate, seen):
    """cleanup runs after a pending change, and later calls get a new session."""
    change = in_background(steps, "change_slowly", {"name": "old", "session_id": "a"}, 1)
    wait_until(lambda: steps.threads.unfinished)
    cleanup = in_background(steps, "cleanup", {}, 2)
    while len(steps.sessions):
        pass
    assert call(steps, "change", {"name": "new", "session_id": "a"}, 3)["success"]
    assert seen == ["new"]
    gate.set()
    assert change()["success"]
    assert cleanup()["result"] == {"status": "cleaned", "programs_removed": 0}


def test_an_empty_worker_cleans_up_too(dispatcher):
    """No session was opened before."""
    assert call(dispatcher, "cleanup")["result"]["programs_removed"] == 0
    assert call(dispatcher, "cleanup_session", {"session_id": "x"})["result"] == {
        "status": "cleaned",
        "session_id": "x",
        "programs_removed": 0,
    }
    assert call(dispatcher, "cleanup_session")["code"] == "invalid_args"


def test_ten_thousand_sessions_end_at_once(dispatcher):
    """cleanup waits for each of them without recursion."""
    for number in range(10_000):
        dispatcher.sessions.open(f"s{number}")
    assert call(dispatcher, "cleanup")["success"]
    assert len(dispatcher.sessions) == 0


def test_session_data(dispatcher):
    """Set, merge, delete and read; the envelope's session takes precedence over that in args."""

    def update(**args):
        return call(dispatcher, "update_session_data", {"session_id": "s", **args})

    assert update(operation="set", key="a", value=[1])["result"]["status"] == "updated"
    update(operation="merge", value={"b": 2, "c": 3})
    update(operation="delete", key="c")
    data = call(dispatcher, "get_session_data", {"session_id": "s"})["result"]
    assert data == {"session_id": "s", "data": {"a": [1], "b": 2}}
    assert call(dispatcher, "get_session_data", {"session_id": "s", "key": "b"})["result"]["data"] == {"b": 2}
    for wrong in (
        {"operation": "explode", "key": "a"},
        {"operation": "set"},
        {"operation": "merge", "value": 1},
    ):
        assert update(**wrong)["code"] == "invalid_args"
    request = {
        "id": 1,
        "command": "get_session_data",
        "session_id": "t",
        "args": {"session_id": "s"},
    }
    assert json.loads(dispatcher.call(json.dumps(request).encode()))["result"] == {
        "session_id": "t",
        "data": {},
    }


def test_describe_has_a_schema_for_every_command(dispatcher):
    """It is made from the types of the args."""
    commands = call(dispatcher, "describe")["result"]["commands"]
    assert set(commands) == set(dispatcher.commands)
    assert all(entry["help"] and entry["args"] for entry in commands.values())
    assert commands["ping"]["idempotent"]
    schema = commands["sleep"]["args"]
    assert schema["$defs"]["SleepArgs"]["properties"]["seconds"]["type"] == "number"


def test_statistics_count_calls_errors_and_bytes(dispatcher):
    """They count each command and refused requests; reset_state resets them."""
    request = b'{"id": 1, "command": "ping"}'
    replies = [dispatcher.call(request) for _ in range(10)]
    call(dispatcher, "sleep", {"seconds": "x"})
    call(dispatcher, "nope")
    stats = call(dispatcher, "get_stats")["result"]
    ping = stats["commands"]["ping"]
    assert (ping["calls"], ping["errors"]) == (10, 0)
    assert ping["bytes_in"] == 10 * len(request)
    assert ping["bytes_out"] == sum(map(len, replies))
    latency = ping["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert (stats["command_count"], stats["error_count"], stats["refused_count"]) == (11, 2, 1)
    assert stats["memory_usage"]["rss"] > 1 << 20
    assert 0 < stats["memory_usage"]["percent"] < 100
    reset = call(dispatcher, "reset_state")["result"]
    assert (reset["status"], reset["errors_reset"]) == ("reset", 2)
    assert reset["commands_reset"] >= 12
    stats = call(dispatcher, "get_stats")["result"]
    assert (stats["error_count"], "ping" in stats["commands"]) == (0, False)


def test_a_late_reply_times_out_for_its_caller(dispatcher):
    """The next caller does not get it."""
    with pytest.raises(TimeoutError):
        call(dispatcher, "sleep", {"seconds": 0.2}, 1, 0.01)
    assert call(dispatcher, "sleep", {}, 2)["id"] == 2


def test_two_commands_of_one_name_are_refused(dispatcher):
    """The error is raised when the table is made, not when a host calls."""
    with pytest.raises(ValueError, match="two adapters have a command 'echo'"):
        dispatcher.add(echo)
    adapter = Adapter("twice")
    adapter.command("a")(lambda args, context: {})
    with pytest.raises(ValueError, match="already"):
        adapter.command("a")(lambda args, context: {})


def test_an_unknown_lane_is_refused():
    """The error names the lanes that there are."""
    with pytest.raises(ValueError, match=r"unknown lane 'main'; known: inline, worker, .*end_all"):
        Adapter("mistaken").command("a", lane="main")


def test_threads_are_bounded():
    """Calls beyond the number of threads wait, and all of them run."""
    dispatcher = Dispatcher(echo, Options(threads=2))
    replies = [in_background(dispatcher, "sleep", {"seconds": 0.05}, i) for i in range(6)]
    assert [reply()["id"] for reply in replies] == list(range(6))
    names = [t.name for t in threading.enumerate() if t.name.startswith("bridge-thread")]
    assert len(names) >= 2


def test_calls_wait_for_lost_threads(gate):
    """If all threads are lost, a call runs on the first one that is free again."""
    adapter = Adapter("lost")

    @adapter.command("block", lane="session")
    def block(args, context):
        gate.wait(30)
        return {}

    @adapter.command("where", lane="session")
    def where(args, context):
        return {"thread": threading.current_thread().name}

    dispatcher = Dispatcher(adapter, Options(threads=1))
    replies: dict[int, dict] = {}
    arrived = threading.Condition()

    def deliver(outbox):
        reply = json.loads(outbox.payload())
        with arrived:
            replies[reply["id"]] = reply
            arrived.notify_all()

    def send(request_id, command, **more):
        request = {"id": request_id, "command": command, "session_id": "s", **more}
        dispatcher.path.answer(Frame.of(json.dumps(request).encode()), Outbox(), deliver)

    def wait_for(*ids):
        with arrived:
            assert arrived.wait_for(lambda: all(each in replies for each in ids), 30), replies

    send(1, "block", timeout_ms=600)
    send(2, "block", timeout_ms=1500)
    send(3, "where")
    wait_for(1, 2)
    assert [replies[each]["code"] for each in (1, 2)] == ["deadline_exceeded"] * 2
    assert call(dispatcher, "get_stats")["result"]["threads_lost"] == 2
    assert call(dispatcher, "where", request_id=4)["code"] == "overloaded"
    assert 3 not in replies
    gate.set()
    wait_for(3)
    assert replies[3]["result"]["thread"].startswith("bridge-thread-")
    assert call(dispatcher, "where", request_id=5)["success"]
