"""The provider of a model name, and names that are refused."""

from __future__ import annotations

import json

import pytest

from bridge.adapters.dspy.providers import full_model, known
from bridge.errors import InvalidArgs
from keys import KEY, SIGNATURE, call, configure


@pytest.mark.parametrize(
    ("model", "provider", "full"),
    [
        ("gpt-4o-mini", None, "openai/gpt-4o-mini"),
        ("o3-mini", None, "openai/o3-mini"),
        ("o1", None, "openai/o1"),
        ("chatgpt-4o-latest", None, "openai/chatgpt-4o-latest"),
        ("claude-3-5-haiku-latest", None, "anthropic/claude-3-5-haiku-latest"),
        ("gemini-1.5-flash", None, "gemini/gemini-1.5-flash"),
        ("gemini-1.5-flash", "google", "gemini/gemini-1.5-flash"),
        ("gemini-1.5-flash", "Google", "gemini/gemini-1.5-flash"),
        ("google/gemini-1.5-flash", None, "gemini/gemini-1.5-flash"),
        ("llama3", "ollama_chat", "ollama_chat/llama3"),
        ("Qwen/Qwen2.5-7B", "openai", "openai/Qwen/Qwen2.5-7B"),
        ("openai/gpt-4o", "openai", "openai/gpt-4o"),
        ("anthropic/claude-3", "openai", "openai/anthropic/claude-3"),
        ("openai/gpt-4o-mini", "openrouter", "openrouter/openai/gpt-4o-mini"),
        ("groq/openai/gpt-oss-20b", None, "groq/openai/gpt-oss-20b"),
        ("gemini-1.5-flash", "vertex_ai", "vertex_ai/gemini-1.5-flash"),
    ],
)
def test_a_models_provider_is_named_or_certain(model, provider, full):
    """`provider` takes precedence over a prefix, and is not repeated in the name."""
    assert full_model(model, provider) == full


@pytest.mark.parametrize("model", ["llama3", "gpt-oss-20b", "gpt-j", "o11y", "mistral-7b", "x", "o2"])
def test_a_model_of_no_certain_provider_is_refused(model, dispatcher):
    """The error explains what to write: a guess might send the key to another provider."""
    reply = configure(dispatcher, model=model, api_key=KEY)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.model")
    assert "provider/model" in reply["error"]
    assert KEY not in json.dumps(reply)


@pytest.mark.parametrize(
    ("args", "path"),
    [
        ({"model": "x", "provider": "mock"}, "args.provider"),
        ({"model": "x", "type": "mock"}, "args.provider"),
        ({"model": "mock/x"}, "args.model"),
        ({"model": "Qwen/Qwen2.5-7B"}, "args.model"),
    ],
)
def test_an_unknown_provider_is_refused(args, path, dispatcher):
    """The error lists the known ones."""
    reply = configure(dispatcher, api_key=KEY, **args)
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", path)
    assert {"openai", "gemini", "offline", "bedrock"} <= {*reply["details"]["known"]}
    assert "openai" in reply["error"]


def test_litellms_providers_are_known_without_loading_it():
    """The list that is read from its sources is the one that LiteLLM uses."""
    import subprocess
    import sys

    program = (
        "import sys\nfrom bridge.adapters.dspy.providers import known\nfound = known()\n"
        "assert 'litellm' not in sys.modules\nimport litellm\n"
        "print({getattr(each, 'value', each) for each in litellm.provider_list} - found)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert len(known()) > 100


@pytest.mark.parametrize(
    "model",
    [
        *("huggingface/https://evil.example/x", "openai/x\ny", "openai/", "", "/x"),
        *("gemini/../../upload/x", "gemini/a/./b", "gemini/a/..", "openai/gpt-4o\u200b"),
    ],
)
def test_a_models_name_cannot_be_an_address(model):
    """LiteLLM would send a key there, or request another path of the provider."""
    with pytest.raises(InvalidArgs):
        full_model(model)


def test_a_gemini_programs_model_is_checked_when_it_is_made(dispatcher):
    """A bare name is Gemini's, unless it is unambiguously another provider's."""
    create = {"signature": SIGNATURE}
    reply = call(dispatcher, "create_gemini_program", **create, model="mock/x")
    assert (reply["code"], reply["details"]["path"]) == ("invalid_args", "args.model")
    assert call(dispatcher, "create_gemini_program", **create, model="my-tuned-one")["success"]
