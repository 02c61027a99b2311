"""The life of a program: created, listed, executed, rebuilt from its data."""

from __future__ import annotations

import pytest

from dspy_requests import QA, script


def test_from_configure_to_execute(ask):
    """Configure, create and execute with the offline reader, without network."""
    assert ask("configure_lm", provider="offline") == {
        "status": "configured",
        "model": "reader",
        "provider": "offline",
        "temperature": None,
    }
    created = ask(
        "create_program",
        id="qa",
        signature={**QA, "inputs": [*QA["inputs"], {"name": "passage", "type": "string"}]},
    )
    assert (created["program_id"], created["status"]) == ("qa", "created")
    result = ask(
        "execute_program",
        program_id="qa",
        inputs={"question": "Where is the Louvre?", "passage": "The Louvre is a museum in Paris."},
    )
    assert result["outputs"] == {"answer": "Paris"}
    assert (result["program_id"], result["model"]) == ("qa", "offline/reader")
    assert result["execution_time"] > 0


def test_chain_of_thought_reasons_first(ask):
    """The reasoning is an output in addition to the declared ones."""
    script(ask, {"reasoning": "since", "answer": "4"})
    ask("create_program", id="cot", signature=QA, program_type="chain_of_thought")
    outputs = ask("execute_program", program_id="cot", inputs={"question": "2+2?"})["outputs"]
    assert outputs == {"reasoning": "since", "answer": "4"}


def test_life_of_a_program(ask):
    """A program is created, listed, run, counted, described and deleted; a missing id is generated."""
    script(ask, {"answer": "a"}, {"answer": "b"})
    program_id = ask("create_program", signature=QA)["program_id"]
    assert len(program_id) == 36
    for _ in range(2):
        ask("execute_program", program_id=program_id, inputs={"question": "?"})
    (listed,) = ask("list_programs")["programs"]
    assert (listed["id"], listed["execution_count"]) == (program_id, 2)
    assert listed["signature"] == QA
    assert listed["created_at"] <= listed["last_executed"]
    info = ask("get_program_info", program_id=program_id)
    assert info == {name: value for name, value in listed.items() if name != "id"}
    assert ask("get_stats")["programs_count"] == 1
    assert ask("delete_program", program_id=program_id) == {
        "program_id": program_id,
        "status": "deleted",
    }
    assert ask("list_programs") == {"programs": [], "total_count": 0}


def test_program_data_in_another_order_is_the_same_program(ask):
    """Elixir sorts the keys of maps: type and counters are unchanged."""
    script(ask, {"reasoning": "r", "answer": "1"}, {"reasoning": "r", "answer": "2"})
    ask("create_program", id="c", signature=QA, program_type="chain_of_thought")
    ask("execute_program", program_id="c", inputs={"question": "?"})
    reordered = dict(sorted(QA.items(), reverse=True))
    outputs = ask(
        "execute_program",
        program_id="c",
        inputs={"question": "?"},
        program_data={"signature": reordered},
    )["outputs"]
    assert outputs == {"reasoning": "r", "answer": "2"}
    assert ask("get_program_info", program_id="c")["execution_count"] == 2


@pytest.mark.parametrize("value", [0, -1, 101, 2**63, -(2**63) - 1, 10**30])
def test_max_iters_has_bounds(call, value):
    """Integers of any size are checked."""
    reply = call("create_program", id="p", signature=QA, program_type="react", max_iters=value)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.max_iters")


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**30])
def test_a_tools_schema_has_numbers_that_can_be_stored(call, value):
    """Numbers of more than 64 bits are refused."""
    args = {"zone": {"type": "integer", "maximum": value}}
    reply = call("register_tools", tools=[{"name": "clock", "args": args}])
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.tools[0].args")


def test_program_data_of_another_type_is_another_program(call):
    """A program with an equal signature but another type is created again."""
    call("configure_lm", provider="offline")
    call("create_program", id="p", signature=QA)
    inputs = {name["name"]: "x" for name in QA["inputs"]}
    for program_type in ("chain_of_thought", "predict"):
        data = {"signature": QA, "program_type": program_type}
        reply = call("execute_program", program_id="p", inputs=inputs, program_data=data)
        assert reply["success"], reply
        info = call("get_program_info", program_id="p")["result"]
        assert info["program_type"] == program_type
