"""Sessions that expire, or are evicted at the limit."""

from __future__ import annotations

from session_adapters import ask, call, in_background, names


def test_idle_sessions_expire(make, clock):
    """They expire after their time to live without a call, with a line in the log; used ones do not."""
    dispatcher = make(session_ttl=100)
    ask(dispatcher, "update_session_data", "idle", key="k", value=1)
    ask(dispatcher, "update_session_data", "used", key="k", value=1)
    ask(dispatcher, "create_session", "short", ttl_s=10)
    for _ in range(3):
        clock.now += 40
        ask(dispatcher, "get_session_data", "used")
    assert names(dispatcher) == {"used"}
    listed = ask(dispatcher, "list_sessions")
    assert (listed["expired"], listed["evicted"]) == (2, 0)
    reply = call(dispatcher, "get_session", session_id="idle")
    assert (reply["code"], reply["details"]) == ("session_not_found", {"was": "expired"})
    assert ask(dispatcher, "get_session_data", "idle")["data"] == {}
    assert ask(dispatcher, "create_session", session_id="idle")["status"] == "exists"


def test_an_expired_session_is_not_visible_before_it_is_dropped(make, clock):
    """Only calls drop sessions, but none sees an expired one."""
    dispatcher = make(session_ttl=100)
    ask(dispatcher, "update_session_data", "a", key="k", value=1)
    clock.now += 100
    assert call(dispatcher, "get_session", session_id="a")["details"] == {"was": "expired"}
    assert ask(dispatcher, "get_session_data", "a")["data"] == {}


def test_the_default_session_is_neither_expired_nor_evicted(make, clock):
    """Hosts without sessions keep their programs."""
    dispatcher = make(session_ttl=10, max_sessions=2)
    ask(dispatcher, "put", name="kept")
    for number in range(5):
        clock.now += 100
        ask(dispatcher, "get_session_data", f"s{number}")
    assert ask(dispatcher, "get_stats")["programs_count"] == 1


def test_a_session_with_an_open_call_does_not_expire(make, clock):
    """Its time to live begins at the end of the call."""
    dispatcher = make(session_ttl=10)
    ask(dispatcher, "put", "busy")
    done = in_background(dispatcher, "wait", "busy")
    for _ in range(3):
        clock.now += 100
        ask(dispatcher, "get_session_data", "other")
    assert "busy" in names(dispatcher)
    dispatcher.worker.adapter.gate.set()
    assert done()["opened"]
    clock.now += 9
    ask(dispatcher, "get_session_data", "other")
    assert ask(dispatcher, "get_session", session_id="busy")["programs"] == 1


def test_a_clock_that_stops_or_jumps_loses_nothing(make, clock):
    """The clock is monotonic; even a jump of a century ends only idle sessions."""
    dispatcher = make()
    ask(dispatcher, "put", "a")
    for _ in range(3):
        ask(dispatcher, "get_session_data", "a")
    clock.now += 3.2e9
    ask(dispatcher, "put", "b")
    assert names(dispatcher) == {"b"}


def test_at_the_limit_the_least_recently_used_session_is_evicted(make):
    """There is a warning at 80 %, and an error for its next call; sessions in use are not evicted."""
    dispatcher = make(max_sessions=5)
    ask(dispatcher, "put", "busy")
    done = in_background(dispatcher, "wait", "busy")
    for name in ("a", "b", "c", "d", "a", "e"):
        ask(dispatcher, "put", name, name=name * 2)
    assert names(dispatcher) == {"busy", "a", "c", "d", "e"}
    assert call(dispatcher, "get_session", session_id="b")["details"] == {"was": "evicted"}
    assert ask(dispatcher, "list_sessions")["evicted"] == 1
    dispatcher.worker.adapter.gate.set()
    done()


def test_when_all_sessions_are_in_use_a_new_one_is_refused(make):
    """The code is `overloaded`."""
    dispatcher = make(max_sessions=2)
    waiting = [in_background(dispatcher, "wait", name) for name in ("a", "b")]
    reply = call(dispatcher, "get_session_data", "c")
    assert (reply["code"], reply["details"]) == ("overloaded", {"retry_after": 1.0, "started": False})
    dispatcher.worker.adapter.gate.set()
    assert all(done()["opened"] for done in waiting)
    assert ask(dispatcher, "get_session_data", "c")["data"] == {}


def test_the_limit_is_logged_once(make, caplog):
    """The warning is logged at 80 % of the limit."""
    dispatcher = make(max_sessions=10)
    for number in range(20):
        ask(dispatcher, "get_session_data", f"s{number}")
    warnings = [record.message for record in caplog.records]
    assert warnings == ["8 of at most 10 sessions; beyond that, the least recently used one is evicted"]
