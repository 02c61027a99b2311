"""`include` of execute_program: usage, cost, completions and prompts, through a real worker."""

from __future__ import annotations

import contextlib

import pytest

from bridge import Client, errors
from model_server import KEY, ModelServer, OpenAI
from openai_server import fields

SIGNATURE = {"inputs": [{"name": "question"}], "outputs": [{"name": "answer"}]}
EVERYTHING = ["usage", "cost", "completions", "trajectory", "prompt"]


@pytest.fixture(scope="module")
def client():
    with Client.start() as client:
        client.call("create_program", {"id": "p", "signature": SIGNATURE})
        yield client


@pytest.fixture
def execute(client, request):
    """Return a function execute(*include, **more) that runs a program in a session of its own."""
    session = request.node.name

    def execute(*include, question="Where?", **more):
        args = {"program_id": "p", "inputs": {"question": question}, "include": [*include], **more}
        return client.call("execute_program", args, session_id=session)

    execute.configure = lambda **args: client.call("configure_lm", args, session_id=session)
    execute.call = lambda command, args: client.call(command, args, session_id=session)
    return execute


@pytest.fixture
def serve():
    """Return a function serve(*responses) that starts a provider with these responses, in this order."""
    with contextlib.ExitStack() as servers:

        def serve(*responses):
            left = [*responses]
            return servers.enter_context(ModelServer(lambda body: left.pop(0)))

        yield serve


def answered(text, usage=None):
    return 200, {}, {**OpenAI.whole(fields(answer=text)), **({"usage": usage} if usage else {})}


def test_nothing_is_included_by_default(execute):
    execute.configure(provider="scripted", answers=[{"answer": "42"}])
    assert execute().keys() == {"program_id", "outputs", "execution_time", "model"}


def test_everything(execute):
    execute.configure(provider="scripted", answers=[{"answer": "42"}])
    result = execute(*EVERYTHING)
    assert result["usage"] == [
        {"model": "scripted/answers", "input_tokens": 33, "output_tokens": 11, "cached": False, "attempts": 1}
    ]
    assert result["cost"] is None  # the price list has no scripted models
    assert result["completions"] == [{"answer": "42"}] == [result["outputs"]]
    assert result["trajectory"] is None
    (prompt,) = result["prompt"]
    assert [message["role"] for message in prompt["messages"]] == ["system", "user"]
    assert "[[ ## question ## ]]\nWhere?" in prompt["messages"][1]["content"]
    assert (prompt["model"], prompt["reply"]) == ("scripted/answers", fields(answer="42"))


def test_a_cached_answer_costs_nothing(execute):
    """It has no attempts."""
    execute.configure(provider="scripted", answers=[{"answer": "42"}], cache=5)
    execute()
    result = execute("usage", "cost")
    assert [(call["cached"], call["attempts"]) for call in result["usage"]] == [(True, 0)]
    assert result["cost"] == 0


def test_usage_of_several_calls(execute):
    """There is one entry for each call of a model, as react makes several."""
    execute.call("register_tools", {"tools": [{"name": "look", "args": {}}]})
    execute.call("create_program", {"id": "agent", "signature": SIGNATURE, "program_type": "react"})
    steps = [
        {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": {}},
        {"reasoning": "because", "answer": "42"},
    ]
    execute.configure(provider="scripted", answers=steps)
    result = execute("usage", "prompt", "completions", program_id="agent")
    assert len(result["usage"]) == len(result["prompt"]) == 2
    assert result["completions"] == [result["outputs"]]


def test_attempts_tokens_and_prices_of_a_provider(execute, serve):
    """A repeated request is one entry; the price is that of DSPy's list."""
    tokens = {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    server = serve((500, {}, {"error": {"message": "again"}}), answered("Paris", tokens))
    execute.configure(model="openai/gpt-4o-mini", api_base=f"{server.url}/v1", api_key=KEY, retry_wait=0)
    result = execute("usage", "cost")
    (usage,) = result["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["attempts"]) == (1000, 100, 2)
    assert result["cost"] == pytest.approx(1000 * 0.15e-6 + 100 * 0.6e-6)


def test_secrets_are_redacted_in_prompts(execute, serve):
    """Neither the key nor one in a reply is shown."""
    server = serve(answered(f"The key is {KEY}."))
    execute.configure(model="openai/test", api_base=f"{server.url}/v1", api_key=KEY)
    result = execute("prompt", question=f"Is {KEY} a key?")
    assert KEY not in str(result["prompt"])
    assert "Is *** a key?" in result["prompt"][0]["messages"][1]["content"]
    assert "The key is ***." in result["prompt"][0]["reply"]


@pytest.mark.parametrize("include", [["everything"], "usage", [1], {"usage": True}, [["usage"]]])
def test_unknown_names_are_refused(execute, include):
    """The error has the path, and no model is called."""
    execute.configure(provider="scripted", answers=[{"answer": "42"}])
    with pytest.raises(errors.InvalidArgs) as caught:
        execute.call("execute_program", {"program_id": "p", "inputs": {"question": "?"}, "include": include})
    assert caught.value.details["path"].startswith("args.include")
    assert execute()["outputs"] == {"answer": "42"}
