"""Numbers out of bounds are errors, and refused or removed objects do not stay in memory."""

from __future__ import annotations

import gc
import itertools
import math
import tracemalloc

import pytest

from bridge import Dispatcher, Quota, Records
from bridge.adapters.dspy import adapter
from bridge.wire.codec import ETF, JSON, MSGPACK

SIGNATURE = {"inputs": [{"name": "q"}], "outputs": [{"name": "a"}]}
ids = itertools.count(1)


@pytest.fixture
def dispatcher():
    return Dispatcher(adapter)


def call(dispatcher, command, /, format=JSON, session_id=None, **args):
    request = {"id": next(ids), "command": command, "args": args, "session_id": session_id}
    return format.decode(dispatcher.call(format.encode(request), 60))


def ask(dispatcher, command, /, **args):
    reply = call(dispatcher, command, **args)
    assert reply["success"], reply
    return reply["result"]


# Args beside which a number is looked at. Requests that have no bounds to their numbers, or whose
# numbers are a language model's, are left out.
EXAMPLE = {"inputs": {"q": "x"}, "outputs": {"a": "x"}}
ARGS = {
    "configure_embedder": {"model": "offline/words"},
    "create_program": {"signature": SIGNATURE, "program_type": "react"},
    "create_gemini_program": {"signature": SIGNATURE, "program_type": "react"},
    "create_session": {"session_id": "s"},
    "evaluate": {"program_id": "p", "devset": [EXAMPLE], "metric": "exact_match"},
    "execute_batch": {"program_id": "p", "inputs": []},
    "get_history": {},
    "get_stats": {},
    "list_programs": {},
    "list_sessions": {},
    "search_index": {"index_id": "i", "query": "x"},
}
WITHOUT_BOUNDS = {"cancel", "pause", "resume", "inspect_call"}
OF_MODELS = {"configure_lm", "execute_program", "execute_gemini_program"}
NEVER_FITS = [-1, 2**63, 2**64, 10**30, -(10**30), 10**400, 10**5000, math.nan, math.inf, "1", True]


def numbers(schema, definitions, path=()):
    """Return the paths of all numbers in a JSON Schema."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for each in schema.get("anyOf", []):
        yield from numbers(each, definitions, path)
    if schema.get("type") in ("integer", "number"):
        yield path
    for name, each in schema.get("properties", {}).items():
        yield from numbers(each, definitions, (*path, name))


def test_every_number_of_every_command_has_bounds(dispatcher):
    """Numbers out of bounds are `invalid_args` with the path in every format, and nothing changes."""
    ask(dispatcher, "register_tools", tools=[{"name": "t"}])
    tried = 0
    for command, entry in ask(dispatcher, "describe")["commands"].items():
        schema = entry["args"]
        paths = set(numbers(schema, schema.get("$defs", {})))
        if not paths or command in WITHOUT_BOUNDS | OF_MODELS:
            continue
        paths = {path for path in paths if path[0] != "options"}  # of a model
        for path, value, format in itertools.product(paths, NEVER_FITS, (JSON, MSGPACK, ETF)):
            if format is JSON and isinstance(value, float):  # it would go as null
                continue
            args = value
            for name in reversed(path):
                args = {name: args}
            try:
                reply = call(dispatcher, command, format=format, **{**ARGS[command], **args})
            except (ValueError, OverflowError):  # the format cannot carry the number
                continue
            tried += 1
            assert reply.get("code") == "invalid_args", (command, path, format.name, reply)
            assert reply["details"]["path"] == ".".join(("args", *path))
            assert len(reply["error"]) < 300
    assert tried > 100
    assert ask(dispatcher, "list_programs")["total_count"] == 0


@pytest.mark.parametrize("command", ["list_sessions", "list_programs"])
def test_the_error_for_a_limit_has_its_range(dispatcher, command):
    """A limit of 0 lists nothing and counts everything."""
    assert "`int` >= 0" in call(dispatcher, command, limit=-1)["error"]
    assert "`int` <= 1000000" in call(dispatcher, command, limit=10**7)["error"]
    for number in range(3):
        ask(dispatcher, "create_program", id=str(number), signature=SIGNATURE)
        ask(dispatcher, "get_session_data", session_id=str(number))
    name = command.removeprefix("list_")
    for limit, listed in ((0, 0), (2, 2), (1_000_000, None)):
        result = ask(dispatcher, command, limit=limit)
        listed = result["total_count"] if listed is None else listed
        assert (len(result[name]), result["total_count"] >= 3) == (listed, True)


@pytest.mark.parametrize("value", [2**70, -(2**70), 10**5000], ids=["large", "small", "huge"])
def test_a_schema_of_a_tool_that_cannot_be_stored_is_refused(dispatcher, value):
    """The tools are unchanged."""
    ask(dispatcher, "register_tools", tools=[{"name": "t"}])
    tool = {"name": "u", "args": {"n": {"type": "integer", "maximum": value}}}
    reply = call(dispatcher, "register_tools", format=ETF, tools=[tool])
    assert reply["code"] == "invalid_args"
    assert reply["details"]["path"].startswith("args.tools[0].args")
    created = call(dispatcher, "create_program", id="p", signature=SIGNATURE, program_type="react")
    assert created["success"]


LARGE = 1_000_000  # characters


def signature(number, **more):
    return {**SIGNATURE, "description": f"{number}" + "x" * LARGE, **more}


def over_the_quota(dispatcher, number):
    args = {"id": f"p{number}", "signature": signature(number)}
    return call(dispatcher, "create_program", session_id="small", **args)["code"]


def that_exists(dispatcher, number):
    return call(dispatcher, "create_program", id="p", signature=signature(number))["code"]


def of_no_type(dispatcher, number):
    args = {"signature": signature(number), "program_type": f"none of {number}" + "x" * LARGE}
    return call(dispatcher, "create_program", **args)["code"]


def with_a_wrong_field(dispatcher, number):
    wrong = signature(number, outputs=[{"name": "a", "type": f"t{number}" + "x" * LARGE}])
    return call(dispatcher, "create_program", signature=wrong)["code"]


def data_over_the_quota(dispatcher, number):
    args = {"key": f"k{number}", "value": signature(number)}
    return call(dispatcher, "update_session_data", session_id="small", **args)["code"]


def tools_over_the_quota(dispatcher, number):
    tools = [{"name": "t", "description": f"{number}" + "x" * LARGE}]
    return call(dispatcher, "register_tools", session_id="small", tools=tools)["code"]


def deleted(dispatcher, number):
    ask(dispatcher, "create_program", id="q", signature=signature(number))
    return ask(dispatcher, "delete_program", program_id="q")["status"]


def replaced(dispatcher, number):
    args = {"id": "r", "signature": signature(number), "if_exists": "replace"}
    return ask(dispatcher, "create_program", **args)["status"]


def compared(dispatcher, number):
    args = {"id": "p", "signature": signature(number), "if_exists": "keep"}
    return ask(dispatcher, "create_program", **args)["status"]


def ended_with_its_session(dispatcher, number):
    for program_type in ("predict", "chain_of_thought", "react"):
        args = {"signature": signature(number), "program_type": program_type}
        ask(dispatcher, "create_program", session_id=f"s{number}", **args)
    return ask(dispatcher, "cleanup_session", session_id=f"s{number}")["status"]


@pytest.mark.parametrize(
    ("use", "outcome"),
    [
        (over_the_quota, "quota_exceeded"),
        (that_exists, "program_exists"),
        (of_no_type, "invalid_args"),
        (with_a_wrong_field, "invalid_args"),
        (data_over_the_quota, "quota_exceeded"),
        (tools_over_the_quota, "quota_exceeded"),
        (deleted, "deleted"),
        (replaced, "replaced"),
        (compared, "exists"),
        (ended_with_its_session, "cleaned"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_what_is_refused_or_removed_leaves_nothing_in_memory(dispatcher, use, outcome):
    """Neither the text nor the objects made from it remain."""
    ask(dispatcher, "create_session", session_id="small", quota={"bytes": 10_000})
    ask(dispatcher, "register_tools", tools=[{"name": "t"}])
    ask(dispatcher, "create_program", id="p", signature=SIGNATURE)
    ask(dispatcher, "create_program", id="r", signature=SIGNATURE)
    use(dispatcher, 0)
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for number in range(1, 9):
            assert use(dispatcher, number) == outcome
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Of eight, what one of them and the last request hold at most.
    assert after - before < 5 * LARGE


class NeverWalked(dict):
    """The programs of a session, which are too many to iterate over."""

    def __iter__(self):
        raise AssertionError("all programs were looked at")

    keys = values = items = __iter__


def test_no_call_for_one_program_iterates_over_all(dispatcher, monkeypatch):
    """Quotas are respected nevertheless."""
    ask(dispatcher, "configure_lm", provider="scripted", answers={"q": {"a": "1"}})
    ask(dispatcher, "create_program", session_id="s", id="p0", signature=SIGNATURE)
    records = dispatcher.sessions.find("s").records
    records.quota = Quota(records=3, bytes=100_000)
    of = Records.of
    monkeypatch.setattr(Records, "of", lambda self, kind: NeverWalked(of(self, kind)))
    for number in (1, 2):
        ask(dispatcher, "create_program", session_id="s", id=f"p{number}", signature=SIGNATURE)
    args = {"signature": SIGNATURE, "session_id": "s"}
    assert call(dispatcher, "create_program", id="p3", **args)["code"] == "quota_exceeded"
    assert call(dispatcher, "create_program", id="p1", **args)["code"] == "program_exists"
    ask(dispatcher, "create_program", id="p1", if_exists="replace", **args)
    ask(dispatcher, "create_program", id="p1", if_exists="keep", **args)
    ask(dispatcher, "execute_program", session_id="s", program_id="p1", inputs={"q": "q"})
    ask(dispatcher, "get_program_info", session_id="s", program_id="p1")
    ask(dispatcher, "update_session_data", session_id="s", key="k", value=1)
    ask(dispatcher, "get_session", session_id="s")
    ask(dispatcher, "delete_program", session_id="s", program_id="p1")
    ask(dispatcher, "create_session", session_id="s", ttl_s=5)
