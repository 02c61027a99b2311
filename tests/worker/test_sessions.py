"""Sessions without a store: creation, listings, quotas, and changes for all sessions."""

from __future__ import annotations

import json
import math
import threading

import msgspec
import pytest

from bridge import Dispatcher, Options
from bridge._framing import Frame, Outbox
from bridge.worker import sessions
from bridge.worker.expiry import Expiry
from session_adapters import WAIT, ask, call, in_background, make_adapter, names


def test_a_session_is_created_on_first_use_or_by_name(make):
    """create_session reports which, and can change its settings; get_session does not create one."""
    dispatcher = make()
    made = ask(dispatcher, "create_session", "a", ttl_s=60, quota={"programs": 2})
    assert (made["status"], made["ttl_s"], made["durable"], made["live"]) == (
        "created",
        60,
        False,
        True,
    )
    assert made["quota"] == {"programs": 2, "bytes": None}
    again = ask(dispatcher, "create_session", session_id="a", ttl_s=61)
    assert (again["status"], again["ttl_s"], again["quota"]["programs"]) == ("exists", 61, 2)
    ask(dispatcher, "update_session_data", "b", key="k", value=1)
    assert ask(dispatcher, "create_session", session_id="b")["status"] == "exists"
    assert names(dispatcher) == {"a", "b"}
    reply = call(dispatcher, "get_session", session_id="c")
    assert (reply["code"], reply["category"]) == ("session_not_found", "session")
    assert names(dispatcher) == {"a", "b"}
    assert ask(dispatcher, "get_session", session_id="a")["ttl_s"] == 61


def test_listings_are_limited_and_the_last_used_comes_first(make):
    """total_count is the number of all sessions."""
    dispatcher = make()
    for name in ("a", "b", "c", "a"):
        ask(dispatcher, "get_session_data", name)
    listed = ask(dispatcher, "list_sessions", limit=2)
    assert [entry["session_id"] for entry in listed["sessions"]] == ["a", "c"]
    assert listed["total_count"] == 3
    assert ask(dispatcher, "list_sessions", limit=0)["sessions"] == []


@pytest.mark.parametrize("ttl", [0, -1, 31_536_001, 1e300])
def test_a_time_to_live_has_bounds(make, ttl):
    """Zero, negative, or longer than a year is an error, and no session changes."""
    dispatcher = make()
    reply = call(dispatcher, "create_session", "a", ttl_s=ttl)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.ttl_s")
    assert ask(dispatcher, "get_session", session_id="a")["ttl_s"] == 3600


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"quota": {"bytes": -1}}, "args.quota.bytes"),
        ({"quota": {"programs": 2**63}}, "args.quota.programs"),
        ({"quota": {"programs": "x"}}, "args.quota.programs"),
        ({"durable": True}, None),
    ],
)
def test_wrong_settings_are_refused(make, args, path):
    """A durable session needs a store."""
    reply = call(make(), "create_session", "a", **args)
    assert reply["code"] == ("not_allowed" if path is None else "invalid_args")
    assert reply["details"].get("path") == path


def test_create_session_needs_a_name(make):
    """The error explains that."""
    assert call(make(), "create_session")["error"] == "Session ID is required"


@pytest.mark.parametrize("name", ["x" * 513, "x" * 10_000_000, ""])
def test_an_id_has_1_to_512_characters(make, name):
    """Ten megabytes are refused in one short line, and no session is created."""
    dispatcher = make()
    for command in ("update_session_data", "create_session", "get_session_data"):
        reply = call(dispatcher, command, name, key="k", value=1)
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "session_id")
        assert len(reply["error"]) < 200
    assert len(call(dispatcher, "get_session", name)["error"]) < 200
    assert ask(dispatcher, "cleanup_session", name)["programs_removed"] == 0
    assert len(dispatcher.sessions) == 0


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b\\c", "nul\0", "'; DROP TABLE x", "é ☃"])
def test_an_id_is_a_name_and_nothing_else(make, name):
    """Path characters, NUL and quotes have no meaning."""
    dispatcher = make()
    ask(dispatcher, "update_session_data", name, key=name, value=name)
    assert ask(dispatcher, "get_session_data", name)["data"] == {name: name}
    assert names(dispatcher) == {name}


@pytest.mark.parametrize(("counted", "count", "code"), [("chunk", 1, "quota_exceeded"), (None, 0, None)])
def test_the_adapter_declares_which_records_are_counted(counted, count, code):
    """The wire calls them `programs`, whatever their kind; without a kind none are counted or limited."""
    dispatcher = Dispatcher(make_adapter(counted), Options(session_programs=1))
    for kind in ("chunk", "program", "data"):
        ask(dispatcher, "put", "a", kind=kind)
    assert call(dispatcher, "put", "a", kind="chunk", name="q").get("code") == code
    ask(dispatcher, "put", "a", kind="program", name="q")
    assert ask(dispatcher, "get_session", "a")["programs"] == count
    assert ask(dispatcher, "get_stats")["programs_count"] == count
    assert ask(dispatcher, "cleanup_session", "a")["programs_removed"] == count


def test_quotas_of_programs_and_bytes(make):
    """Exceeding them is `quota_exceeded`, and nothing changes; existing programs may be replaced."""
    dispatcher = make(session_programs=2)
    for name in ("p", "q", "q"):
        ask(dispatcher, "put", "a", name=name)
    reply = call(dispatcher, "put", "a", name="r")
    assert (reply["code"], reply["category"]) == ("quota_exceeded", "resource")
    assert reply["details"] == {"quota": "programs", "limit": 2, "wanted": 3}
    ask(dispatcher, "put", "b", name="r")

    ask(dispatcher, "create_session", "c", quota={"bytes": 200})
    ask(dispatcher, "update_session_data", "c", key="k", value="x" * 100)
    size = ask(dispatcher, "get_session", session_id="c")["bytes"]
    assert 100 < size <= 200
    reply = call(dispatcher, "update_session_data", "c", operation="merge", value={"m": 1, "n": "x" * 100})
    assert reply["code"] == "quota_exceeded"
    assert ask(dispatcher, "get_session_data", "c")["data"] == {"k": "x" * 100}
    assert ask(dispatcher, "get_session", session_id="c")["bytes"] == size
    ask(dispatcher, "create_session", "c", quota={"bytes": 10})
    assert call(dispatcher, "update_session_data", "c", key="n", value=1)["code"] == ("quota_exceeded")
    ask(dispatcher, "update_session_data", "c", key="k", value="less")
    ask(dispatcher, "update_session_data", "c", operation="delete", key="k")
    assert ask(dispatcher, "get_session", session_id="c")["bytes"] == 0


def test_data_is_returned_unchanged(make):
    """Numbers beyond 64 bits, nested values, and other formats too."""
    dispatcher = make()
    value = {"big": 2**100, "deep": [[{}]], "text": "\u0000é", "none": None, "float": 1.5}
    ask(dispatcher, "update_session_data", "a", operation="merge", value=value)
    assert ask(dispatcher, "get_session_data", "a")["data"] == value
    ask(dispatcher, "update_session_data", "b", key="k", value=[1, "x", None])
    request = msgspec.msgpack.encode({"id": 1, "command": "get_session_data", "session_id": "b", "args": {}})
    reply = msgspec.msgpack.decode(dispatcher.call(request, WAIT))
    assert reply["result"]["data"] == {"k": [1, "x", None]}
    ask(dispatcher, "update_session_data", "b", key="k")
    assert ask(dispatcher, "get_session_data", "b")["data"] == {"k": None}


def test_thousands_of_new_sessions_wait_for_one_change_for_all(make):
    """Every call gets its reply, without recursion."""
    dispatcher = make()
    gate = threading.Event()

    @dispatcher.worker.adapter.command("change_all", lane="everyone")
    def change_all(args, context):
        """Wait for the gate."""
        return {"opened": gate.wait(WAIT)}

    other = Dispatcher(dispatcher.worker.adapter, Options(max_sessions=5000))
    changed = in_background(other, "change_all", None)
    replies = []

    def deliver(outbox):
        replies.append(outbox.payload())

    for number in range(3000):
        request = {"id": f"n{number}", "command": "get_session_data", "session_id": f"s{number}"}
        other.path.answer(Frame.of(json.dumps(request).encode()), Outbox(), deliver)
    gate.set()
    assert changed()["opened"]
    assert other.threads.drain(WAIT)
    assert len(replies) == 3000
    assert ask(other, "get_session_data", "one more")["data"] == {}


def test_a_late_change_for_all_sessions_changes_and_delays_nothing(make):
    """Its handler continues, but neither later calls nor the next change wait for it."""
    dispatcher = make()
    gate, returned = threading.Event(), threading.Event()

    @dispatcher.worker.adapter.command("change_slowly", lane="everyone")
    def change_slowly(args, context):
        """Wait for the gate."""
        context.shared["by"] = "the late one"
        gate.wait(WAIT)
        returned.set()
        return {}

    @dispatcher.worker.adapter.command("change", lane="everyone")
    def change(args, context):
        """Return the state that it found."""
        found = context.shared.get("by")
        context.shared["by"] = "the next one"
        return {"found": found}

    @dispatcher.worker.adapter.command("look")
    def look(args, context):
        """Return the state that it sees."""
        return {"by": context.shared.get("by")}

    other = Dispatcher(dispatcher.worker.adapter)
    request = {"id": "all", "command": "change_slowly", "timeout_ms": 50}
    reply = json.loads(other.call(json.dumps(request).encode(), WAIT))
    assert reply["code"] == "deadline_exceeded"
    assert ask(other, "look", "a") == {"by": None}
    assert ask(other, "change") == {"found": None}
    gate.set()
    assert returned.wait(WAIT)
    assert other.threads.drain(WAIT)
    for name in ("a", "new", None):
        assert ask(other, "look", name) == {"by": "the next one"}


def test_a_merge_over_a_lowered_quota_changes_nothing(make):
    """It is applied completely or not at all."""
    dispatcher = make()
    ask(dispatcher, "update_session_data", "a", operation="merge", value={"x": "1" * 50})
    ask(dispatcher, "create_session", "a", quota={"bytes": 10})
    reply = call(
        dispatcher,
        "update_session_data",
        "a",
        operation="merge",
        value={"x": "short", "y": "2" * 60},
    )
    assert reply["code"] == "quota_exceeded"
    assert ask(dispatcher, "get_session_data", "a")["data"] == {"x": "1" * 50}


def test_a_create_session_that_is_refused_changes_nothing(make):
    """A durable session needs a store."""
    dispatcher = make()
    reply = call(dispatcher, "create_session", "a", durable=True, ttl_s=5, quota={"programs": 0})
    assert reply["code"] == "not_allowed"
    session = ask(dispatcher, "get_session", session_id="a")
    assert (session["ttl_s"], session["quota"]["programs"]) == (3600, None)


def test_expired_sessions_are_not_listed(make, clock):
    """This holds before a call drops them, and in the statistics."""
    dispatcher = make(session_ttl=10)
    ask(dispatcher, "get_session_data", "a")
    clock.now += 11
    assert ask(dispatcher, "list_sessions") == {
        "sessions": [],
        "total_count": 0,
        "limit": 10_000,
        "expired": 0,
        "evicted": 0,
    }
    assert ask(dispatcher, "get_stats", include=["sessions"])["sessions"] == []


def test_a_single_session_beside_the_default_one(make):
    """The limit counts sessions with a name."""
    dispatcher = make(max_sessions=1)
    for name in (None, "a", None, "b", "a", None):
        assert ask(dispatcher, "get_session_data", name)["data"] == {}
    assert ask(dispatcher, "list_sessions")["evicted"] == 2


def test_an_ended_session_is_not_checked_for_expiry(make, monkeypatch):
    """Sessions are cleaned up, evicted and configured again, and each live one is due once."""
    made = []
    monkeypatch.setattr(sessions, "Expiry", lambda: made.append(Expiry()) or made[-1])
    dispatcher = make(max_sessions=10)
    for number in range(300):
        ask(dispatcher, "create_session", f"s{number % 50}", ttl_s=1000 + number)
        if number % 3 == 0:
            ask(dispatcher, "cleanup_session", f"s{number % 50}")
    (expiry,) = made
    assert len(list(expiry.due(math.inf, 1000))) == len(dispatcher.sessions)


def test_the_default_session_has_its_idle_time(make, clock):
    """Describing it does not count as a use."""
    dispatcher = make(session_ttl=10)
    ask(dispatcher, "put")
    clock.now += 25
    ask(dispatcher, "get_session_data", "a")
    assert ask(dispatcher, "get_session", session_id="default")["idle_s"] == 25
