"""Dates, keys, decimals and deep values among the inputs of a program."""

from __future__ import annotations

import pytest

MOMENTS = [
    # type, an input, what the prompt shows (None: refused)
    ("date", "2024-02-29", "2024-02-29"),
    ("date", "20240229", "2024-02-29"),
    ("date", "2024-02-29T00:00:00", "2024-02-29"),
    ("date", 20240229, None),
    ("date", "1709164800", None),
    ("date", "2024-02-30", None),
    ("datetime", "2024-02-29T10:11:12+02:00", "2024-02-29T10:11:12+02:00"),
    ("datetime", "2024-02-29 10:11:12Z", "2024-02-29T10:11:12Z"),
    ("datetime", 1709164800, None),
    ("datetime", 1709164800.5, None),
    ("datetime", "1709164800", None),
    ("time", "10:11", "10:11:00"),
    ("time", 3600, None),
]


@pytest.mark.parametrize(("type", "value", "shown"), MOMENTS)
@pytest.mark.parametrize("within", ["{}", "list<{}>", "optional<{}>", "dict<string, {}>"])
def test_dates_among_the_inputs(run, type, value, shown, within):
    """Dates are ISO 8601; a number is never read as the time since 1970."""
    made, place = {"list<{}>": ([value], "[0]"), "dict<string, {}>": ({"a": value}, ".a")}.get(within, (value, ""))
    inputs = [{"name": "day", "type": within.format(type)}]
    signature = {"inputs": inputs, "outputs": [{"name": "a"}]}
    run.call("create_program", id="in", signature=signature, session_id="in", if_exists="replace")
    answers = {shown or "": {"a": "seen"}}
    run.call("configure_lm", provider="scripted", answers=answers, session_id="in")
    reply = run.call("execute_program", program_id="in", inputs={"day": made}, session_id="in")
    if shown is None:
        assert reply["code"] == "invalid_args"
        assert reply["details"]["path"].startswith(f"args.inputs.day{place}")
    else:
        assert reply["result"]["outputs"] == {"a": "seen"}


@pytest.mark.parametrize(
    ("type", "keys", "shown"),
    [
        ("dict<enum<1,2>, string>", ["1", "2"], '"2"'),
        ("dict<enum<true,none>, string>", ["true", "null"], '"v"'),
        ("list<dict<enum<1,'2'>, string>>", ["1", "2"], '"2"'),
        ("dict<enum<1,2>, string>", ["3"], None),
        ("dict<enum<1,2>, string>", ["one"], None),
    ],
)
def test_keys_among_the_inputs(run, type, keys, shown):
    """JSON has only texts as keys, whatever the declared type is."""
    inputs = [{"name": "x", "type": type}]
    signature = {"inputs": inputs, "outputs": [{"name": "a"}]}
    run.call("create_program", id="in", signature=signature, session_id="in", if_exists="replace")
    answers = {shown or "": {"a": "seen"}}
    run.call("configure_lm", provider="scripted", answers=answers, session_id="in")
    value = dict.fromkeys(keys, "v")
    made = {"x": [value] if type.startswith("list") else value}
    reply = run.call("execute_program", program_id="in", inputs=made, session_id="in")
    if shown is None:
        assert reply["code"] == "invalid_args"
        assert reply["details"]["path"].startswith(f"args.inputs.x.{keys[0]}")
    else:
        assert reply["result"]["outputs"] == {"a": "seen"}


def test_deep_inputs(run):
    """Deeply nested inputs are refused or reach the prompt, and never cause an internal error."""
    deep = 0.5
    for _ in range(450):
        deep = [deep]
    for type in ("any", "list", "decimal", "list<decimal>", "date"):
        inputs = [{"name": "x", "type": type}]
        signature = {"inputs": inputs, "outputs": [{"name": "a"}]}
        run.call("create_program", id="in", signature=signature, if_exists="replace")
        run.call("configure_lm", provider="scripted", answers=[{"a": "seen"}])
        reply = run.call("execute_program", program_id="in", inputs={"x": deep})
        assert reply["success"] or reply["code"] == "invalid_args", reply


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        ("1234567890123456.78", "1234567890123456.78"),
        ("0.10", "0.10"),
        (0.1, "0.1"),
        (5, "5"),
        (1234567890123456.78, None),
        (0.1234567890123456789, None),
    ],
)
@pytest.mark.parametrize("type", ["decimal", "list<decimal>", "dict<string, optional<decimal>>"])
def test_decimals_among_the_inputs(run, type, value, taken):
    """Decimals reach the prompt unchanged; a float that may have been rounded is refused."""
    made, place = {
        "decimal": (value, ""),
        "list<decimal>": ([value], "[0]"),
        "dict<string, optional<decimal>>": ({"a": value}, ".a"),
    }[type]
    signature = {"inputs": [{"name": "price", "type": type}], "outputs": [{"name": "a"}]}
    run.call("create_program", id="in", signature=signature, session_id="in", if_exists="replace")
    answers = {"" if taken is None else taken: {"a": "seen"}}
    run.call("configure_lm", provider="scripted", answers=answers, session_id="in")
    reply = run.call("execute_program", program_id="in", inputs={"price": made}, session_id="in")
    if taken is None:
        assert reply["code"] == "invalid_args"
        assert reply["details"]["path"] == f"args.inputs.price{place}"
        assert "as a string" in reply["error"]
    else:
        assert reply["result"]["outputs"] == {"a": "seen"}
