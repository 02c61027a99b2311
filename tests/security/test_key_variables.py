"""Keys that configure_lm takes from a variable of the worker's environment: {"env": NAME}."""

from __future__ import annotations

import json

import pytest

from keys import SIGNATURE
from openai_server import HTTPFault, OpenAIServer, fields

TEAM_KEY = "sk-team-0123456789abcdef"
RUN = {"program_id": "qa", "inputs": {"question": "?"}}


@pytest.fixture
def server():
    with OpenAIServer(lambda prompt: fields(answer="yes")) as server:
        yield server


@pytest.fixture
def start(start_peer, server):
    """Return a function start(*flags) that starts a worker with the key in TEAM_KEY."""

    def start(*flags):
        peer = start_peer(*flags, adapter="dspy", env={"TEAM_KEY": f"{TEAM_KEY}\n", "EMPTY": "", "SPLIT": "a\nb"})
        assert peer.call("create_program", {"id": "qa", "signature": SIGNATURE})["success"]
        return peer

    return start


def test_the_operator_allows_a_variable(start, server):
    """Its key is sent to an address that the operator allows, and occurs in no reply, error or log."""
    peer = start("--api-key-env", "TEAM_KEY", "--api-base", server.url, "--log-level", "DEBUG")
    args = {"model": "openai/x", "api_base": server.url, "api_key": {"env": "TEAM_KEY"}, "retries": 0, "history": 5}
    replies = [peer.call("configure_lm", args), peer.call("execute_program", RUN, timeout_ms=60_000)]
    assert all(reply["success"] for reply in replies), replies
    assert [headers["Authorization"] for headers, _ in server.requests] == [f"Bearer {TEAM_KEY}"]

    def refuse(prompt):
        raise HTTPFault(401, f"wrong key {TEAM_KEY}")

    server.answer = refuse
    replies += [peer.call("execute_program", RUN, timeout_ms=60_000), peer.call("get_history"), peer.call("get_stats")]
    assert replies[2]["code"] == "lm_error"
    assert TEAM_KEY not in json.dumps(replies)
    peer.close_input()
    assert TEAM_KEY not in peer.stderr()


def test_other_variables_are_not_allowed(start):
    """Nor are those that hold keys of providers, unless the operator names them."""
    peer = start("--api-key-env", "TEAM_KEY")
    for name in ("PATH", "OPENAI_API_KEY", "team_key", "", "TEAM_KEY "):
        reply = peer.call("configure_lm", {"model": "openai/x", "api_key": {"env": name}})
        assert (reply["code"], reply["details"]["path"]) == ("not_allowed", "args.api_key"), name
        assert "--api-key-env" in reply["error"]


@pytest.mark.parametrize("variable", ["EMPTY", "MISSING", "SPLIT"])
def test_a_variable_without_a_key(start, variable):
    """The error names it, without its value."""
    peer = start("--api-key-env", variable)
    reply = peer.call("configure_lm", {"model": "openai/x", "api_key": {"env": variable}})
    assert (reply["code"], reply["details"]) == ("invalid_args", {"path": "args.api_key", "variable": variable})


def test_the_key_goes_to_no_address_of_a_host(start, server):
    """It is the operator's, although the host has named the variable."""
    peer = start("--api-key-env", "TEAM_KEY")
    args = {"model": "openai/x", "api_base": server.url, "api_key": {"env": "TEAM_KEY"}}
    reply = peer.call("configure_lm", args)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.api_base")
    assert not server.requests


@pytest.mark.parametrize("key", [{}, {"env": 5}, {"env": "TEAM_KEY", "x": 1}, {"file": "/etc/passwd"}, [], 5])
def test_wrong_forms_of_a_key(start, key):
    """A key is a text or {"env": NAME}."""
    reply = start("--api-key-env", "TEAM_KEY").call("configure_lm", {"model": "openai/x", "api_key": key})
    assert reply["code"] == "invalid_args"
    assert reply["details"]["path"].startswith("args.api_key")


@pytest.mark.parametrize("name", ["", "A B", "1A", "A=B", "Ä"])
def test_a_name_that_is_none_is_a_usage_error(start_peer, name):
    """With status 2."""
    peer = start_peer("--api-key-env", name)
    assert peer.wait() == 2
    assert "--api-key-env" in peer.stderr()
