"""configure_lm: both forms, ranges, the model of a session and of everyone."""

from __future__ import annotations

import json
import math
import threading

import pytest

from bridge.wire.codec import MSGPACK
from dspy_requests import QA, script


def test_without_a_model_there_is_a_clear_error(ask, call):
    """The error names the command that configures a model."""
    ask("create_program", id="qa", signature=QA)
    reply = call("execute_program", program_id="qa", inputs={"question": "?"})
    assert reply["code"] == "lm_not_configured"
    assert "configure_lm" in reply["error"]


CONFIGURATIONS = [
    ({"type": "gemini", "model": "gemini-1.5-flash", "api_key": "k"}, "gemini"),
    (
        {"model": "gemini-1.5-flash", "api_key": "k", "temperature": 0.5, "provider": "google"},
        "gemini",
    ),
    ({"model": "gemini-1.5-flash"}, "gemini"),
    ({"model": "openai/gpt-4o-mini"}, "openai"),
    (
        {
            **{"model": "llama3", "provider": "ollama_chat", "api_key": "none"},
            "api_base": "http://localhost:1",
        },
        "ollama_chat",
    ),
]


@pytest.mark.parametrize(("args", "provider"), CONFIGURATIONS)
def test_configure_lm_takes_both_forms_and_sends_no_request(ask, args, provider):
    """It sends no hidden request, and its reply does not contain the key."""
    result = ask("configure_lm", **args)
    assert result == {
        "status": "configured",
        "model": args["model"],
        "provider": provider,
        "temperature": args.get("temperature"),
    }


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"model": ""},
        {"provider": "gemini"},
        {"model": "openai/"},
        {"model": 5},
        {"model": "openai/gpt-5", "temperature": 0.5},
    ],
)
def test_wrong_configurations_are_refused(call, args):
    """Wrong settings are refused by configure_lm, not at the first run."""
    assert call("configure_lm", **args)["code"] in {"invalid_args", "lm_error"}


def test_gemini_programs_have_their_own_model(ask, call):
    """create_gemini_program and execute_gemini_program create and run a program with its own model."""
    script(ask, {"answer": "x"})
    ask("create_gemini_program", id="g", signature=QA, model="scripted/answers")
    result = ask("execute_gemini_program", program_id="g", inputs={"question": "?"})
    assert result["outputs"] == {"answer": "x"}


def test_many_executes_run_side_by_side(dispatcher, ask, call):
    """Sessions with different models run on threads at once, and each gets its own answers."""
    sessions = [f"s{index}" for index in range(20)]
    for session in sessions:
        ask(
            "configure_lm",
            provider="scripted",
            session_id=session,
            answers={"?": {"answer": session}},
        )
        ask("create_program", id="qa", signature=QA, session_id=session)
    wrong = []

    def run(session):
        for _ in range(10):
            outputs = ask("execute_program", program_id="qa", session_id=session, inputs={"question": "?"})["outputs"]
            if outputs != {"answer": session}:
                wrong.append((session, outputs))

    threads = [threading.Thread(target=run, args=(session,)) for session in sessions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reply_in_another_format_is_an_lm_error(ask, call):
    """The error has DSPy's code and one line, and the model is not asked again."""
    script(ask, "no fields at all", {"answer": "second"})
    ask("create_program", id="qa", signature=QA)
    reply = call("execute_program", program_id="qa", inputs={"question": "?"})
    assert (reply["code"], reply["details"]["lm_code"]) == ("lm_error", "adapter_parse_error")
    assert "\n" not in reply["error"]
    assert ask("execute_program", program_id="qa", inputs={"question": "?"})["outputs"] == {"answer": "second"}


def test_a_model_for_all_sessions_is_set_before_later_calls(dispatcher):
    """configure_lm without a session, then create and execute in a session, sent without waiting."""
    done = threading.Event()
    replies = {}

    def deliver(outbox):
        reply = json.loads(outbox.payload())
        replies[reply["id"]] = reply
        if len(replies) == 3:
            done.set()

    from bridge._framing import Frame, Outbox

    for request_id, command, args in (
        (1, "configure_lm", {"provider": "offline"}),
        (2, "create_program", {"id": "p", "signature": QA, "session_id": "new"}),
        (
            3,
            "execute_program",
            {"program_id": "p", "inputs": {"question": "?"}, "session_id": "new"},
        ),
    ):
        request = json.dumps({"id": request_id, "command": command, "args": args}).encode()
        dispatcher.path.answer(Frame.of(request), Outbox(), deliver)
    assert done.wait(60)
    assert all(reply["success"] for reply in replies.values()), replies


HUGE = 10**30


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [3, -0.1, 2.01, HUGE, "0.5", True, [1]]),
        ("max_tokens", [0, -1, HUGE, 2**31, 1.5, "10", True]),
        ("timeout", [0, -1, HUGE, "1", True, None]),
        ("retries", [-1, 11, HUGE, 1.5, "1", True, None]),
        ("retry_wait", [-1, 61, HUGE, "1", True, None]),
        ("retry_cap", [-1, 601, HUGE, "1", True, None]),
        ("cache", [-1, 100_001, HUGE, "1", True, None]),
    ],
)
def test_settings_out_of_range_are_refused(call, name, values):
    """configure_lm refuses them with the path, instead of each run failing."""
    for value in values:
        reply = call("configure_lm", model="openai/x", **{name: value})
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", f"args.{name}"), value


@pytest.mark.parametrize(
    ("name", "values"),
    [("temperature", [3, -1, HUGE, "1", True]), ("max_tokens", [0, HUGE, 1.5, True])],
)
def test_options_out_of_range_are_refused(ask, call, name, values):
    """Options of a run that are out of range are refused before the model is asked."""
    script(ask, {"answer": "1"})
    ask("create_program", id="qa", signature=QA)
    run = {"program_id": "qa", "inputs": {"question": "?"}}
    for value in values:
        reply = call("execute_program", **run, options={name: value})
        path = f"args.options.{name}"
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path), value
    assert ask("execute_program", **run, options={name: 1})["outputs"] == {"answer": "1"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_settings_that_are_not_numbers_are_refused(dispatcher, value):
    """MessagePack can carry NaN and infinity."""
    for name in ("temperature", "timeout", "retry_wait", "retry_cap"):
        args = {"model": "openai/x", name: value}
        request = {"id": 1, "command": "configure_lm", "args": args}
        reply = MSGPACK.decode(dispatcher.call(MSGPACK.encode(request), 60))
        assert (reply["code"], reply["details"]["path"]) == ("invalid_args", f"args.{name}")


def test_settings_at_the_ends_of_their_ranges_are_accepted(ask):
    for low, high in (
        ({"temperature": 0}, {"temperature": 2}),
        ({"max_tokens": 1}, {"retries": 0}),
    ):
        ask("configure_lm", model="openai/x", **low)
        ask("configure_lm", model="openai/x", **high)
