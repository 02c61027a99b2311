"""Several completions of one call (`n`): each is an answer of its own, and so are cached ones."""

from __future__ import annotations

import pytest

FORMATS = ["chat", "json", "xml", "two_step", "baml"]
SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
FINISH = [{"next_thought": f"done {number}", "next_tool_name": "finish", "next_tool_args": {}} for number in range(3)]


def answers(count, first=0):
    return [{"reasoning": f"because {number}", "answer": f"a{number}"} for number in range(first, first + count)]


# By the type of a program: what its model answers to the requests before those that have the outputs.
STEPS = {"predict": [], "chain_of_thought": [], "react": FINISH}


@pytest.mark.parametrize("adapter", FORMATS)
@pytest.mark.parametrize("program_type", STEPS)
def test_every_completion_is_an_answer_of_its_own(ask, program_type, adapter):
    """A repeated call returns the same ones from the cache: the model has no answer to a further request. DSPy's ReAct
    returns only the first."""
    steps, texts = STEPS[program_type], answers(3)
    if adapter == "two_step":  # the same model extracts the fields of each
        steps, texts = steps * 2, answers(3, 7) + texts
    options = {"tools": [], "allow_no_tools": True} if program_type == "react" else {}
    ask("create_program", id="p", signature=SIGNATURE, program_type=program_type, session_id="s", **options)
    ask("configure_lm", provider="scripted", answers=steps + texts, cache=50, session_id="s")
    run = {"program_id": "p", "inputs": {"question": "?"}, "options": {"n": 3}, "include": ["completions", "usage"]}
    first, second = (ask("execute_program", adapter=adapter, session_id="s", **run) for _ in range(2))
    wanted = ["a0"] if program_type == "react" else ["a0", "a1", "a2"]
    assert [each["answer"] for each in first["completions"]] == wanted
    assert second["completions"] == first["completions"]
    assert len(first["usage"]) == len(steps + texts)
    assert {call["cached"] for call in first["usage"]} == {False}
    assert {call["cached"] for call in second["usage"]} == {True}
