"""Programs that calls without a session import, load or optimize: all workers of a pool have them."""

from __future__ import annotations

import pytest

from bridge import errors
from bridge.testing import MockPool
from peer import wait_until

QUESTION = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
ROW = {"inputs": {"question": "Who?"}, "outputs": {"answer": "Ann"}}
LEARNED = {
    "demos": [{"question": "Who?", "answer": "Ann"}],
    "signature": {"instructions": "Be brief.", "fields": []},
    "metadata": {},
}


@pytest.fixture
def pool():
    with MockPool(2) as pool:
        pool.call("configure_lm", {"provider": "offline"})
        pool.call("create_program", {"id": "p", "signature": QUESTION})
        yield pool


def crash(pool):
    """Replace all workers."""
    before = {*pool._slots.ready}
    pool.mock.crash()
    wait_until(lambda: len(pool._slots.ready) == 2 and not before & {*pool._slots.ready}, 30)


def instructions(pool, program_id="p"):
    """Return what each worker says of a program."""
    args = {"program_id": program_id, "include": ["instructions"]}
    return [slot.ask("get_program", args, 30)["instructions"] for slot in pool._slots.ready]


def document(pool, text):
    """Return the document of the program `p` with other instructions."""
    found = pool.call("export_program", {"program_id": "p"})["document"]
    found["signature"]["instructions"] = text
    return found


def test_what_a_program_has_learned(pool):
    """A document of DSPy is imported into a program; the last one counts, after the program itself."""
    for text in ("Be kind.", "Be brief."):
        learned = {**LEARNED, "signature": {"instructions": text, "fields": []}}
        pool.call("import_program", {"document": learned, "program_id": "p"})
    assert pool.status()["shared_changes"] == 3
    crash(pool)
    assert instructions(pool) == ["Be brief."] * 2


def test_a_whole_program(pool):
    """A document that defines a program replaces what was imported and created before."""
    pool.call("import_program", {"document": LEARNED, "program_id": "p"})
    args = {"document": document(pool, "Answer."), "program_id": "p", "if_exists": "replace"}
    assert pool.call("import_program", args)["status"] == "replaced"
    assert pool.status()["shared_changes"] == 2
    pool.call("import_program", {"document": args["document"]})
    ids = {entry["id"] for entry in pool.call("list_programs")["programs"]}
    crash(pool)
    assert instructions(pool) == ["Answer."] * 2
    for slot in pool._slots.ready:
        assert {entry["id"] for entry in slot.ask("list_programs", None, 30)["programs"]} == ids


@pytest.mark.parametrize("command", ["create_program", "delete_program"])
def test_a_new_or_deleted_program_has_learned_nothing(pool, command):
    """What was imported into the earlier one is not repeated."""
    pool.call("import_program", {"document": LEARNED, "program_id": "p"})
    if command == "create_program":
        pool.call("create_program", {"id": "p", "signature": QUESTION, "if_exists": "replace"})
    else:
        pool.call("delete_program", {"program_id": "p"})
    assert pool.status()["shared_changes"] == (2 if command == "create_program" else 1)


def test_an_optimized_program(pool):
    """It is made in one worker, and imported into all others."""
    args = {"program_id": "p", "optimizer": "labeled_few_shot", "trainset": [ROW], "metric": "exact_match"}
    assert pool.call("optimize", {**args, "save_as": "better"})["program_id"] == "better"
    assert instructions(pool, "better") == ["Given the fields `question`, produce the fields `answer`."] * 2
    pool.submit("optimize", {**args, "save_as": "later"}).result(30)
    with pool.stream("optimize", {**args, "save_as": "last"}) as stream:
        assert [data["phase"] for event, data in stream if event == "progress"] == ["baseline", "result"]
    crash(pool)
    for program_id in ("better", "later", "last"):
        assert len(instructions(pool, program_id)) == 2


@pytest.mark.parametrize("on_event", [None, lambda event, data: None])
def test_an_optimized_program_that_is_refused(pool, monkeypatch, on_event):
    """The call ends with the error of the import."""
    monkeypatch.setattr("bridge.pool.journal.MOST_ENTRIES", 2)
    args = {"program_id": "p", "optimizer": "labeled_few_shot", "trainset": [ROW], "metric": "exact_match"}
    call = pool.submit("optimize", {**args, "save_as": "better"}, on_event=on_event)
    with pytest.raises(errors.QuotaExceeded, match="use sessions"):
        call.result(30)


def test_an_optimized_program_of_a_session(pool):
    """It stays in the session."""
    args = {"program_id": "p", "optimizer": "labeled_few_shot", "trainset": [ROW], "metric": "exact_match"}
    pool.call("optimize", {**args, "save_as": "own"}, session_id="ann")
    assert [entry["id"] for entry in pool.call("list_programs")["programs"]] == ["p"]
