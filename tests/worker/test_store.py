"""Durable sessions: stored before the reply, opened by another worker, ended."""

from __future__ import annotations

import pytest

from bridge import Client
from store_workers import QA, ask, call


def test_a_session_is_restored_completely(open_worker):
    """Programs, model, tools, data and settings, in another worker without any request for that."""
    first = open_worker()
    made = ask(first, "create_session", durable=True, ttl_s=50, quota={"programs": 5})
    assert made["durable"]
    ask(first, "configure_lm", provider="scripted", answers=[{"answer": "Graz"}])
    ask(first, "register_tools", tools=[{"name": "look", "args": {"at": {"type": "string"}}}])
    ask(first, "create_program", id="qa", signature=QA)
    ask(first, "create_program", id="re", signature=QA, program_type="react", max_iters=3)
    ask(first, "create_program", id="gone", signature=QA)
    ask(first, "delete_program", program_id="gone")
    ask(first, "update_session_data", key="k", value={"n": [1, 2**80]})

    second = open_worker()
    listed = ask(second, "list_programs")
    assert [entry["id"] for entry in listed["programs"]] == ["qa", "re"]
    assert listed["programs"][0]["signature"] == QA
    assert [entry["program_type"] for entry in listed["programs"]] == ["predict", "react"]
    assert ask(second, "get_session_data")["data"] == {"k": {"n": [1, 2**80]}}
    session = ask(second, "get_session", session_id="s")
    assert (session["ttl_s"], session["quota"]["programs"]) == (50, 5)
    assert session["created_at"] == made["created_at"]
    assert ask(second, "create_session")["status"] == "exists"
    done = ask(second, "execute_program", program_id="qa", inputs={"question": "Where?"})
    assert done["outputs"] == {"answer": "Graz"}
    tools = second.sessions.open("s").state.get("re").definition.tools
    assert [tool.name for tool in tools] == ["look"]


def test_content_from_before_a_session_was_durable_is_stored(open_worker):
    """Later changes are stored too, including deletions."""
    first = open_worker()
    ask(first, "update_session_data", key="before", value=1)
    ask(first, "create_session", durable=True)
    ask(first, "update_session_data", operation="merge", value={"after": 2, "gone": 3})
    ask(first, "update_session_data", operation="delete", key="gone")
    assert ask(open_worker(), "get_session_data")["data"] == {"before": 1, "after": 2}


def test_sessions_are_not_durable_unless_asked_for(open_worker):
    """With a store alone, nothing is written."""
    ask(open_worker(), "update_session_data", key="k", value=1)
    other = open_worker()
    assert ask(other, "get_session_data")["data"] == {}
    assert call(other, "get_session", session_id="t")["code"] == "session_not_found"


def test_keys_are_not_stored(open_worker, path):
    """Nor are passwords in addresses; the error of a restored session explains that."""
    first = open_worker()
    ask(first, "create_session", durable=True)
    ask(
        first,
        "configure_lm",
        model="openai/gpt-4o-mini",
        api_key="sk-very-secret",
        api_base="http://user:hidden-password@127.0.0.1:9/v1?key=hidden-too",
    )
    ask(first, "create_program", id="qa", signature=QA)
    first.sessions.store.close()
    for file in path.parent.iterdir():
        for secret in (b"sk-very-secret", b"hidden-password", b"hidden-too"):
            assert secret not in file.read_bytes(), file
    second = open_worker()
    reply = call(second, "execute_program", program_id="qa", inputs={"question": "?"})
    assert reply["code"] == "lm_not_configured"
    assert "openai/gpt-4o-mini" in reply["error"]
    ask(second, "configure_lm", provider="scripted", answers=[{"answer": "yes"}])
    done = ask(second, "execute_program", program_id="qa", inputs={"question": "?"})
    assert done["outputs"]["answer"] == "yes"


def test_an_evicted_session_loses_its_key_but_not_its_programs(open_worker):
    """It is evicted from memory but still in the store, and not counted as lost."""
    worker = open_worker(max_sessions=1)
    ask(worker, "create_session", durable=True)
    ask(worker, "create_program", id="qa", signature=QA)
    ask(worker, "get_session_data", "other")
    listed = ask(worker, "list_sessions")
    assert {entry["session_id"]: entry["live"] for entry in listed["sessions"]} == {
        "other": True,
        "s": False,
    }
    stored = ask(worker, "get_session", session_id="s")
    assert (stored["live"], stored["durable"], stored["programs"]) == (False, True, 1)
    assert ask(worker, "list_programs")["total_count"] == 1


def test_the_last_to_open_a_session_owns_it(open_worker):
    """An earlier owner gets session_lost, writes nothing, and may open it again."""
    first, second = open_worker(), open_worker()
    ask(first, "create_session", durable=True)
    ask(first, "update_session_data", key="k", value="first")
    ask(second, "update_session_data", key="k", value="second")
    reply = call(first, "update_session_data", key="k", value="stale")
    assert (reply["code"], reply["category"], reply["recovery"]) == (
        "session_lost",
        "session",
        "immediate_retry",
    )
    assert ask(second, "get_session_data")["data"] == {"k": "second"}
    ask(first, "update_session_data", key="l", value="mine again")
    assert ask(first, "get_session_data")["data"] == {"k": "second", "l": "mine again"}
    assert call(second, "create_session", ttl_s=5)["code"] == "session_lost"
    assert ask(second, "create_session")["status"] == "exists"


@pytest.mark.parametrize(
    ("command", "args"),
    [
        ("update_session_data", {"key": "k", "value": "first"}),
        ("update_session_data", {"key": "none", "operation": "delete"}),  # changes nothing
        ("create_program", {"id": "qa", "signature": QA}),  # an error if it is in the session already
        ("create_program", {"id": "other", "signature": QA}),
        ("delete_program", {"program_id": "other"}),
        ("create_session", {}),
        ("get_session_data", {}),
        ("list_programs", {}),
    ],
)
def test_no_call_sees_what_a_session_had_before_another_worker_took_it(open_worker, command, args):
    """Also calls that change nothing, or fail: they get session_lost, and the next one sees what there is."""
    first, second = open_worker(), open_worker()
    ask(first, "create_session", durable=True)
    ask(first, "create_program", id="qa", signature=QA)
    ask(first, "update_session_data", key="k", value="first")
    ask(second, "delete_program", program_id="qa")
    ask(second, "update_session_data", key="k", value="second")
    assert call(first, command, **args)["code"] == "session_lost"
    assert ask(second, "get_session_data")["data"] == {"k": "second"}
    assert ask(second, "list_programs")["total_count"] == 0
    assert ask(first, "create_program", id="qa", signature=QA)["program_id"] == "qa"
    assert ask(first, "get_session_data")["data"] == {"k": "second"}


def test_a_session_created_again_is_another_one(open_worker):
    """The owner of the old one does not write to the new one."""
    first, second = open_worker(), open_worker()
    ask(first, "create_session", durable=True)
    ask(first, "create_program", id="qa", signature=QA)
    assert ask(second, "cleanup_session")["programs_removed"] == 1
    assert call(second, "get_session", session_id="s")["code"] == "session_not_found"
    ask(second, "create_session", durable=True)
    assert call(first, "update_session_data", key="k", value=1)["code"] == "session_lost"
    assert ask(second, "get_session_data")["data"] == {}
    assert ask(second, "list_programs")["total_count"] == 0


def test_cleanup_does_not_change_the_store(open_worker):
    """Nor do reset_state and the end of the worker; cleanup_session does."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    ask(worker, "create_program", id="qa", signature=QA)
    for command in ("cleanup", "reset_state"):
        ask(worker, command)
        assert ask(worker, "list_programs")["total_count"] == 1
    ask(worker, "cleanup_session")
    assert ask(worker, "list_programs")["total_count"] == 0


def test_a_durable_session_stays_durable(open_worker):
    """durable: false is refused, and a second true has no effect."""
    worker = open_worker()
    ask(worker, "create_session", durable=True)
    reply = call(worker, "create_session", durable=False)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.durable")
    assert ask(worker, "create_session", durable=True)["durable"]


def test_a_session_survives_the_kill_of_its_worker(path):
    """A change is stored once its reply is sent."""
    flags = ["--store", f"sqlite:{path}"]
    client = Client.start(adapter="echo", flags=flags)
    client.call("create_session", {"durable": True}, session_id="s")
    client.call("update_session_data", {"key": "k", "value": 7}, session_id="s")
    client.kill()
    with Client.start(adapter="echo", flags=flags) as again:
        assert again.call("get_session_data", session_id="s")["data"] == {"k": 7}
    assert not path.with_name("store.db-wal").exists()  # a clean end leaves one file
