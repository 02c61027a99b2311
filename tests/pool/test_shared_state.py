"""What calls without a session change, which all workers of a pool have."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading

import pytest

from bridge import errors
from peer import wait_until

QUESTION = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}


def everywhere(pool, command, args=None):
    """Return the results of a call in each worker."""
    return [slot.ask(command, args, 30) for slot in pool._slots.ready]


def kill_all(pool, count=2):
    pids = {slot["pid"] for slot in pool.status()["slots"]}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not pids & {slot["pid"] for slot in pool.status()["slots"]})
    wait_until(lambda: pool.status()["workers"] == {"ready": count}, 60)


def test_a_change_is_made_in_all_workers_and_in_those_that_start_later(pool):
    """In the order in which it was made."""
    for name in "abc":
        assert pool.call("add_name", {"name": name})[-1] == name
    assert [names for _, names in everywhere(pool, "names")] == [["a", "b", "c"]] * 2
    kill_all(pool)
    assert [names for _, names in everywhere(pool, "names")] == [["a", "b", "c"]] * 2


def test_changes_by_futures_are_ordered_before_later_calls(pool):
    """A caller does not have to wait for the reply."""
    for number in range(50):
        pool.submit("update_session_data", {"key": "k", "value": number})
        assert pool.submit("get_session_data").result(30)["data"] == {"k": number}


def test_changes_of_a_session_are_not_shared(pool):
    pool.call("add_name", {"name": "a"}, session_id="ann")
    pool.call("update_session_data", {"session_id": "ann", "key": "k", "value": 1})
    assert [names for _, names in everywhere(pool, "names")] == [[]] * 2
    assert pool.status()["shared_changes"] == 0


def test_the_default_session_by_its_name_is_shared_too(pool):
    pool.call("add_name", {"name": "a"}, session_id="default")
    assert [names for _, names in everywhere(pool, "names")] == [["a"]] * 2


def test_a_change_that_is_refused_is_not_kept(pool):
    with pytest.raises(errors.InvalidArgs):
        pool.call("update_session_data", {"key": "k", "operation": "nonsense"})
    assert pool.status()["shared_changes"] == 0


def test_later_changes_replace_earlier_ones(pool):
    for number in range(20):
        pool.call("update_session_data", {"key": "k", "value": number})
    pool.call("update_session_data", {"operation": "merge", "key": "m", "value": {"a": 1}})
    pool.call("update_session_data", {"operation": "merge", "key": "m", "value": {"b": 2}})
    pool.call("set_log_level", {"level": "ERROR"})
    assert pool.status()["shared_changes"] == 4
    kill_all(pool)
    assert everywhere(pool, "get_session_data")[0]["data"] == {"k": 19, "m": {"a": 1, "b": 2}}
    pool.call("update_session_data", {"key": "m", "value": 0})
    kill_all(pool)
    assert everywhere(pool, "get_session_data")[0]["data"] == {"k": 19, "m": 0}


def test_a_reset_is_made_everywhere(pool):
    pool.call("add_name", {"name": "a"})
    pool.call("set_log_level", {"level": "ERROR"})
    pool.call("reset_state")
    assert [names for _, names in everywhere(pool, "names")] == [[]] * 2
    assert pool.status()["shared_changes"] == 1  # the level


def test_args_may_change_after_the_call(pool):
    args = {"name": "a"}
    pool.call("add_name", args)
    args["name"] = "b"
    kill_all(pool)
    assert [names for _, names in everywhere(pool, "names")] == [["a"]] * 2


def test_the_number_of_changes_is_limited(pool, monkeypatch):
    monkeypatch.setattr("bridge.pool.journal.MOST_ENTRIES", 2)
    pool.call("add_name", {"name": "a"})
    pool.call("update_session_data", {"key": "k", "value": 1})
    with pytest.raises(errors.QuotaExceeded, match="use sessions"):
        pool.call("add_name", {"name": "b"})
    pool.call("update_session_data", {"key": "k", "value": 2})


def test_changes_while_workers_die_and_start_are_the_same_everywhere(start_pool):
    """Each acknowledged one is in every worker, in the same order."""
    pool = start_pool(3)
    acknowledged = []
    done = threading.Event()

    def kill():
        while not done.wait(0.15):
            os.kill(pool._slots.ready[-1].pid, signal.SIGKILL) if len(pool._slots.ready) > 1 else None

    killer = threading.Thread(target=kill)
    killer.start()
    for number in range(300):
        try:
            pool.call("add_name", {"name": str(number)})
            acknowledged.append(str(number))
        except errors.WorkerCrashed:
            pass
    done.set()
    killer.join()
    wait_until(lambda: pool.status()["workers"] == {"ready": 3}, 60)
    lists = [names for _, names in everywhere(pool, "names")]
    assert lists[0] == lists[1] == lists[2]
    assert set(acknowledged) <= set(lists[0])


def test_programs_and_models_are_shared(start_pool):
    """Those of DSPy, with an id that the pool chooses if the caller does not."""
    pool = start_pool(adapter="dspy")
    pool.call("configure_lm", {"provider": "scripted", "answers": {"": {"answer": "42"}}})
    program = pool.call("create_program", {"signature": QUESTION})["program_id"]
    pool.call("create_program", {"id": "q", "signature": QUESTION, "if_exists": "keep"})
    other = {"inputs": [{"name": "text"}], "outputs": [{"name": "answer"}]}
    pool.call("create_program", {"id": "q", "signature": other, "if_exists": "keep"})  # changes nothing
    kill_all(pool)
    for _ in range(4):
        for name in (program, "q"):
            run = {"program_id": name, "inputs": {"question": "6 * 7?"}}
            assert pool.call("execute_program", run, session_id=None)["outputs"] == {"answer": "42"}
            assert pool.call("execute_program", run, session_id="ann")["outputs"] == {"answer": "42"}
    pool.call("delete_program", {"program_id": program})
    kill_all(pool)
    assert [each["programs"][0]["id"] for each in everywhere(pool, "list_programs")] == ["q", "q"]
    assert pool.status()["shared_changes"] == 2


STEP = "[[ ## next_thought ## ]]\n-\n[[ ## next_tool_name ## ]]\n{}\n[[ ## next_tool_args ## ]]\n{}"
STEPS = [
    STEP.format("double", '{"number": 21}'),
    STEP.format("finish", "{}"),
    "[[ ## reasoning ## ]]\n-\n[[ ## answer ## ]]\n42",
]


def test_a_program_is_created_after_the_tools_that_it_was_given_later(start_pool):
    pool = start_pool(workers=1, adapter="dspy")
    for name in ("first", "second", "first"):
        pool.call("register_tools", {"tools": [{"name": name, "description": name, "args": {}}]})
        program = {"id": "p", "program_type": "react", "tools": [name], "signature": QUESTION, "if_exists": "replace"}
        pool.call("create_program", program)
    kill_all(pool, count=1)
    assert everywhere(pool, "get_program_info", {"program_id": "p"})[0]["program_id"] == "p"
    assert pool.status()["shared_changes"] == 3


def test_tools_are_called_from_all_workers(start_pool):
    """Whichever runs the program; also in those that start later."""
    calls = []

    def double(number: int) -> int:
        """Return twice the number."""
        calls.append(number)
        return 2 * number

    pool = start_pool(adapter="dspy", tools=[double])
    pool.call("create_program", {"id": "p", "signature": QUESTION, "program_type": "react"})
    run = {"program_id": "p", "inputs": {"question": "2 * 21?"}}
    for session_id in ("ann", "bob", "eve"):
        pool.call("configure_lm", {"provider": "scripted", "answers": STEPS}, session_id=session_id)
        assert pool.call("execute_program", run, session_id=session_id)["outputs"]["answer"] == "42"
    kill_all(pool)
    pool.call("configure_lm", {"provider": "scripted", "answers": STEPS}, session_id="tom")
    events = [event for event, _ in pool.stream("execute_program", run, session_id="tom")]
    assert "tool_result" in events
    assert calls == [21] * 4


def test_an_interrupted_change_is_made_in_all_workers(start_pool):
    """As by Ctrl-C at any moment: workers must not differ, and the pool keeps the change."""
    pool = start_pool(3)

    def interrupt(*_):
        raise KeyboardInterrupt

    gc.disable()  # an interrupt in a destructor would be ignored, with a warning
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for number in range(150):
            with contextlib.suppress(KeyboardInterrupt):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0.00005 * (1 + number % 30))
                    pool.call("add_name", {"name": str(number)})
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    pool.call("add_name", {"name": "last"})
    wait_until(lambda: not pool._journal._open)
    names = {tuple(sorted(names)) for _, names in everywhere(pool, "names")}
    assert len(names) == 1
    assert pool.status()["shared_changes"] == len(*names)


def test_texts_that_are_added_to_an_index_are_shared(start_pool):
    """Each addition is made after the index was created; a new index of its id has none of them."""
    pool = start_pool(adapter="dspy")
    index = {"index_id": "i", "texts": ["a"], "vectors": [[1.0, 0.0]]}
    pool.call("create_index", index)
    for text in ("b", "b", "c"):
        pool.call("add_to_index", {**index, "texts": [text]})
    assert pool.status()["shared_changes"] == 4
    kill_all(pool)
    assert [each["indexes"][0]["texts"] for each in everywhere(pool, "list_indexes")] == [4, 4]
    pool.call("create_index", {**index, "if_exists": "replace"})
    assert pool.status()["shared_changes"] == 1
    kill_all(pool)
    assert [each["indexes"][0]["texts"] for each in everywhere(pool, "list_indexes")] == [1, 1]
