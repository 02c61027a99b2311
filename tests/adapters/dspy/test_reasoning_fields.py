"""Outputs of the type reasoning: a section of the reply, or what a reasoning model returns beside it."""

from __future__ import annotations

import pytest

from model_server import KEY, Anthropic, Gemini, ModelServer, OpenAI
from openai_server import fields

SIGNATURE = {"inputs": [{"name": "q"}], "outputs": [{"name": "why", "type": "reasoning"}, {"name": "a"}]}


def anthropic(body):
    reply = Anthropic.whole(fields(a="x"))
    reply["content"].insert(0, {"type": "thinking", "thinking": "because", "signature": "s"})
    return reply if body["thinking"]["type"] == "enabled" else None


def gemini(body):
    reply = Gemini.whole(fields(a="x"))
    reply["candidates"][0]["content"]["parts"].insert(0, {"text": "because", "thought": True})
    return reply if body["generationConfig"]["thinkingConfig"] else None


def openai(body):
    reply = OpenAI.whole(fields(a="x"), reasoning_content="because")
    return reply if body["reasoning_effort"] == "low" else None


@pytest.mark.parametrize(
    ("model", "path", "answer"),
    [
        ("anthropic/claude-sonnet-4-5", Anthropic.path, anthropic),
        ("gemini/gemini-2.5-flash", Gemini.path, gemini),
        ("openai/o3-mini", OpenAI.path, openai),
    ],
)
def test_models_that_reason_are_asked_to(ask, model, path, answer):
    ask("create_program", id="p", signature=SIGNATURE)
    with ModelServer(lambda body: (200, {}, answer(body))) as server:
        ask("configure_lm", model=model, api_base=server.url + path, api_key=KEY, retries=0)
        result = ask("execute_program", program_id="p", inputs={"q": "?"})
    assert result["outputs"] == {"why": "because", "a": "x"}


def test_other_models_write_it(ask):
    ask("create_program", id="p", signature=SIGNATURE)
    ask("configure_lm", provider="scripted", answers=[{"why": '"because"', "a": "x"}])
    assert ask("execute_program", program_id="p", inputs={"q": "?"})["outputs"] == {"why": '"because"', "a": "x"}
