"""Programs whose id exists already, and what sessions inherit from the default session."""

from __future__ import annotations

import itertools
import json

import pytest

from bridge import Client, Dispatcher, Options
from bridge.adapters.dspy import adapter
from bridge.worker.stores.sqlite import SQLiteStore

QA = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
OTHER = {"inputs": [{"name": "question"}], "outputs": [{"name": "reply"}]}
TOOL = {"name": "look", "args": {"at": {"type": "string"}}}
ids = itertools.count(1)


@pytest.fixture
def open_worker(tmp_path):
    """Return a function that creates dispatchers; those with `store=True` share one file."""
    stores = []

    def open_worker(store=False, **options):
        if store:
            stores.append(SQLiteStore(tmp_path / "store.db"))
        return Dispatcher(adapter, Options(**options), store=stores[-1] if store else None)

    yield open_worker
    for store in stores:
        store.close()


def call(dispatcher, command, /, session_id=None, **args):
    request = {"id": next(ids), "command": command, "args": args, "session_id": session_id}
    return json.loads(dispatcher.call(json.dumps(request).encode(), 60))


def ask(dispatcher, command, /, session_id=None, **args):
    reply = call(dispatcher, command, session_id, **args)
    assert reply["success"], reply
    return reply["result"]


def create(dispatcher, session_id=None, **args):
    return call(dispatcher, "create_program", session_id, **{"id": "p", "signature": QA, **args})


def run(dispatcher, session_id=None, program_id="p"):
    inputs = {"question": "?"}
    return call(dispatcher, "execute_program", session_id, program_id=program_id, inputs=inputs)


SAME = [
    {},
    {"signature": {**QA, "inputs": [{"name": "question", "type": "string"}], "module": "M"}},
    {"signature": {"outputs": {"answer": {}}, "inputs": {"question": {}}}},
]
DIFFERENT = [
    {"signature": OTHER},
    {"program_type": "chain_of_thought"},
    {"signature": {**QA, "description": "Be short."}},
]


@pytest.mark.parametrize("command", ["create_program", "create_gemini_program"])
def test_by_default_an_existing_program_is_an_error(open_worker, command):
    """The default of `if_exists` is "error"."""
    worker = open_worker()
    args = {"id": "p", "signature": QA}
    for more in ({}, {"if_exists": "keep"}, {"if_exists": "replace"}, {"if_exists": "error"}):
        args["id"] = f"p{len(more)}{more.get('if_exists')}"
        assert ask(worker, command, **args, **more)["status"] == "created"
    for more in ({}, {"if_exists": "error"}):
        args["id"] = "p0None"
        reply = call(worker, command, **args, **more)
        assert (reply["code"], reply["error"]) == (
            "program_exists",
            "Program with ID 'p0None' already exists",
        )
    reply = call(worker, command, **args, if_exists="skip")
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.if_exists")


@pytest.mark.parametrize("same", SAME)
def test_keep_does_not_change_an_equal_program(open_worker, same):
    """Its counters are unchanged, and the reply confirms that the definitions are equal."""
    worker = open_worker()
    ask(worker, "configure_lm", provider="scripted", answers=[{"answer": "x"}])
    create(worker)
    assert run(worker)["success"]
    before = ask(worker, "get_program_info", program_id="p")
    kept = create(worker, if_exists="keep", **same)["result"]
    assert (kept["status"], kept["same_definition"]) == ("exists", True)
    assert (kept["signature"], kept["program_type"]) == (QA, "predict")
    assert ask(worker, "get_program_info", program_id="p") == before


@pytest.mark.parametrize("different", DIFFERENT)
def test_keep_reports_a_different_existing_program(open_worker, different):
    """The existing program is unchanged, and the reply has its definition."""
    worker = open_worker()
    create(worker)
    kept = create(worker, if_exists="keep", **different)["result"]
    assert (kept["status"], kept["same_definition"]) == ("exists", False)
    assert (kept["signature"], kept["program_type"]) == (QA, "predict")


def test_keep_compares_tools_iterations_and_models(open_worker):
    """The comparison covers react programs and Gemini programs."""
    worker = open_worker()
    ask(worker, "register_tools", tools=[TOOL, {"name": "other"}])
    react = {"program_type": "react", "if_exists": "keep"}
    create(worker, **react)
    assert create(worker, **react, max_iters=20)["result"]["same_definition"]
    assert not create(worker, **react, max_iters=3)["result"]["same_definition"]
    assert not create(worker, **react, tools=["other"])["result"]["same_definition"]
    ask(worker, "create_gemini_program", id="g", signature=QA, model="gemini-a")
    for model, is_same in (("gemini-a", True), ("gemini-b", False)):
        args = {"id": "g", "signature": QA, "model": model, "if_exists": "keep"}
        assert ask(worker, "create_gemini_program", **args)["same_definition"] is is_same


@pytest.mark.parametrize("if_exists", ["keep", "replace"])
def test_a_wrong_definition_is_an_error_whatever_exists(open_worker, if_exists):
    """The existing program is unchanged."""
    worker = open_worker()
    ask(worker, "configure_lm", provider="scripted", answers=[{"answer": "x"}])
    create(worker)
    for wrong in ({"program_type": "nope"}, {"signature": {"inputs": [], "outputs": []}}):
        assert create(worker, if_exists=if_exists, **wrong)["code"] == "invalid_args"
    assert run(worker)["result"]["outputs"] == {"answer": "x"}


def test_replace_replaces_the_program(open_worker):
    """The definition, the counters and the time of creation are those of the new program."""
    worker = open_worker()
    ask(worker, "configure_lm", provider="scripted", answers=[{"answer": "a"}, {"reply": "b"}])
    create(worker)
    assert run(worker)["result"]["outputs"] == {"answer": "a"}
    replaced = create(worker, if_exists="replace", signature=OTHER)["result"]
    assert (replaced["status"], replaced["signature"]) == ("replaced", OTHER)
    info = ask(worker, "get_program_info", program_id="p")
    assert (info["signature"], info["execution_count"]) == (OTHER, 0)
    assert run(worker)["result"]["outputs"] == {"reply": "b"}
    assert ask(worker, "list_programs")["total_count"] == 1


def test_replacing_respects_the_quota(open_worker):
    """The old program is not counted; if the new one is too large, the old one is unchanged."""
    worker = open_worker()
    ask(worker, "create_session", "s", quota={"programs": 1, "bytes": 2000})
    create(worker, "s")
    assert create(worker, "s", if_exists="replace")["result"]["status"] == "replaced"
    large = {**QA, "description": "x" * 3000}
    reply = create(worker, "s", if_exists="replace", signature=large)
    assert reply["code"] == "quota_exceeded"
    assert ask(worker, "get_program_info", "s", program_id="p")["signature"] == QA


def test_a_durable_program_is_kept_and_replaced_across_restarts(open_worker):
    """`keep` does not write to the store."""
    first = open_worker(store=True)
    ask(first, "create_session", "s", durable=True)
    ask(first, "register_tools", "s", tools=[TOOL])
    create(first, "s", program_type="react")
    second = open_worker(store=True)
    ask(second, "register_tools", "s", tools=[TOOL])
    before = second.sessions.store.commits.transactions
    kept = create(second, "s", program_type="react", if_exists="keep")["result"]
    assert (kept["status"], kept["same_definition"]) == ("exists", True)
    assert second.sessions.store.commits.transactions == before
    create(second, "s", signature=OTHER, if_exists="replace")
    third = open_worker(store=True)
    (listed,) = ask(third, "list_programs", "s")["programs"]
    assert (listed["signature"], listed["program_type"]) == (OTHER, "predict")


def test_a_session_inherits_the_programs_of_the_default_session(open_worker):
    """It can run and describe them, but not change them."""
    worker = open_worker()
    ask(worker, "configure_lm", provider="scripted", answers=[{"answer": "x"}])
    create(worker)
    assert run(worker, "a")["result"]["outputs"] == {"answer": "x"}
    info = ask(worker, "get_program_info", "a", program_id="p")
    assert (info["inherited"], info["execution_count"]) == (True, 1)
    assert "inherited" not in ask(worker, "get_program_info", program_id="p")
    listed = ask(worker, "list_programs", "a")
    assert (listed["programs"], listed["total_count"], listed["inherited"]) == ([], 0, ["p"])
    assert "inherited" not in ask(worker, "list_programs")
    reply = call(worker, "delete_program", "a", program_id="p")
    assert reply["code"] == "program_not_found"
    assert reply["error"].startswith("Program not found: p (in session 'a'; the default ")
    assert reply["details"]["inherited"] is True
    ask(worker, "cleanup_session", "a")
    assert ask(worker, "list_programs")["total_count"] == 1


def test_a_sessions_own_program_takes_precedence(open_worker):
    """It may have the id of a program of the default session."""
    worker = open_worker()
    ask(worker, "configure_lm", provider="scripted", answers=[{"reply": "own"}, {"answer": "x"}])
    create(worker)
    assert create(worker, "a", signature=OTHER)["result"]["status"] == "created"
    assert run(worker, "a")["result"]["outputs"] == {"reply": "own"}
    assert ask(worker, "list_programs", "a")["inherited"] == []
    ask(worker, "delete_program", "a", program_id="p")
    assert run(worker, "a")["result"]["outputs"] == {"answer": "x"}


def test_sessions_inherit_nothing_from_each_other(open_worker):
    """Nor does the default session inherit from them, and errors do not mention other sessions' programs."""
    worker = open_worker()
    create(worker, "a")
    for session in (None, "b"):
        reply = run(worker, session)
        assert reply["code"] == "program_not_found"
        assert "'a'" not in json.dumps(reply)
    assert run(worker)["error"] == "Program not found: p"
    assert run(worker, "b")["error"] == ("Program not found: p (in session 'b' or the default session)")
    assert run(worker, "b")["details"] == {"program_id": "p", "session_id": "b"}


def test_a_session_inherits_the_tools_of_the_default_session(open_worker):
    """Its own tools take precedence; a program uses the tools of the time of its creation."""
    worker = open_worker()
    own = {**TOOL, "description": "own"}
    ask(worker, "register_tools", tools=[TOOL, {**TOOL, "name": "listen"}])
    ask(worker, "register_tools", "a", tools=[own])
    create(worker, "a", program_type="react")
    create(worker, "b", program_type="react", tools=["listen"])
    tools = worker.sessions.find("a").state.get("p").definition.tools
    assert {tool.name: tool.description for tool in tools} == {"look": "own", "listen": ""}
    assert [t.name for t in worker.sessions.find("b").state.get("p").definition.tools] == ["listen"]
    reply = create(worker, "c", program_type="react", tools=["smell"])
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.tools")


def test_program_data_equal_to_an_inherited_program_runs_that_one(open_worker):
    """Another definition creates a program in the session itself."""
    worker = open_worker()
    ask(worker, "configure_lm", provider="scripted", answers=[{"answer": "x"}, {"reply": "y"}])
    create(worker)
    run_args = {"program_id": "p", "inputs": {"question": "?"}}
    for signature, counts in ((QA, (1, 0)), (OTHER, (1, 1))):
        ask(worker, "execute_program", "a", **run_args, program_data={"signature": signature})
        default = ask(worker, "get_program_info", program_id="p")["execution_count"]
        assert (default, ask(worker, "list_programs", "a")["total_count"]) == counts


def test_a_durable_default_session_is_inherited_without_being_opened(open_worker):
    """A new worker finds its programs, and its owner remains the owner."""
    first = open_worker(store=True)
    ask(first, "create_session", "default", durable=True)
    create(first)
    ask(first, "register_tools", tools=[TOOL])
    second = open_worker(store=True)
    ask(second, "configure_lm", "a", provider="scripted", answers=[{"answer": "x"}])
    assert run(second, "a")["result"]["outputs"] == {"answer": "x"}
    assert ask(second, "list_programs", "a")["inherited"] == ["p"]
    create(second, "a", id="re", program_type="react")
    tools = second.sessions.find("a").state.get("re").definition.tools
    assert [tool.name for tool in tools] == ["look"]
    create(first, id="q")  # no session_lost
    assert ask(second, "list_programs", "a")["inherited"] == ["p", "q"]
    ask(first, "delete_program", program_id="p")
    assert run(second, "a")["code"] == "program_not_found"


def test_in_a_pool_worker_the_anonymous_session_is_inherited():
    """In a real pool worker, the anonymous session is the default session."""
    with Client.start(flags=["--mode", "pool-worker"]) as client:
        client.call("configure_lm", {"provider": "scripted", "answers": [{"answer": "x"}]})
        client.call("create_program", {"id": "p", "signature": QA})
        result = client.call("execute_program", {"program_id": "p", "inputs": {"question": "?"}}, session_id="u1")
        assert result["outputs"] == {"answer": "x"}
