"""The providers of language models, and which of them serves a model.

A provider that answers in this process is a row in `LOCAL`; one that is called over HTTP needs a row in `ADDRESSES`
only if keys of the environment may be sent to it. DSPy and LiteLLM, which take seconds to load, are not imported here.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from bridge import errors
from bridge.adapters.dspy.settings import LMSettings


class LocalProvider(NamedTuple):
    """A provider whose models answer in this process, or are called by the host.

    default_model: the model if configure_lm names none; None: it must name one. engine: returns an engine for
    `dspy.LM`. is_shared: whether sessions of equal settings share an engine.
    """

    default_model: str | None
    engine: Callable[[LMSettings], Any]
    is_shared: bool = True


def _offline(settings: LMSettings) -> Any:
    from bridge.adapters.dspy.engines.text import TextEngine
    from bridge.adapters.offline import OfflineReader  # loads numpy

    return TextEngine(OfflineReader(), words_per_piece=4)


def _scripted(settings: LMSettings) -> Any:
    import json

    from bridge.adapters.dspy.engines.scripted import ScriptedAnswers
    from bridge.adapters.dspy.engines.text import TextEngine

    return TextEngine(ScriptedAnswers(json.loads(settings.answers or "[]")))


def _host(settings: LMSettings) -> Any:
    from bridge.adapters.dspy.engines.host import HostModel

    return HostModel(settings.model.partition("/")[2])


HOST = "host"
LOCAL = {
    HOST: LocalProvider(None, _host),
    "offline": LocalProvider("reader", _offline),
    "scripted": LocalProvider("answers", _scripted, is_shared=False),  # its answers are used up
}
ALIASES = {"google": "gemini"}  # names that hosts use -> DSPy's
GEMINI = "gemini"
GEMINI_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
DEFAULT_GEMINI_MODEL = "gemini-2.0-flash"

# Model names that only one provider uses. Open models (gpt-oss-…, gemma-…, mistral-…) are served by many.
UNAMBIGUOUS = re.compile(
    r"(?P<openai>(?:chat)?gpt-\d|chatgpt-|(?:o1|o3|o4)(?:$|-)|text-embedding-(?:3|ada))"
    r"|(?P<anthropic>claude-)|(?P<gemini>gemini-)|(?P<xai>grok-\d)"
)

# The address of each provider's own API: LiteLLM's defaults for the common ones.
ADDRESSES = {
    "anthropic": "https://api.anthropic.com",
    "cerebras": "https://api.cerebras.ai",
    "cohere": "https://api.cohere.com",
    "deepseek": "https://api.deepseek.com",
    "fireworks_ai": "https://api.fireworks.ai",
    "gemini": "https://generativelanguage.googleapis.com",
    "groq": "https://api.groq.com",
    "mistral": "https://api.mistral.ai",
    "openai": "https://api.openai.com",
    "openrouter": "https://openrouter.ai",
    "perplexity": "https://api.perplexity.ai",
    "together_ai": "https://api.together.xyz",
    "xai": "https://api.x.ai",
}

_NAME = re.compile(r"\S+(?: \S+)*")
LONGEST_NAME = 512  # characters


def full_model(model: str, provider: str | None = None, default: str | None = None) -> str:
    """Return DSPy's name of `model`, provider first.

    The provider is `provider`, or else the part of the name before the first slash, or else the one that is known to
    serve such names, or else `default`. Raises InvalidArgs if it is unknown, or the name is not valid.
    """
    # Some providers make the name a part of the URL.
    if (
        not (_NAME.fullmatch(model) and model.isprintable())
        or len(model) > LONGEST_NAME
        or "://" in model
        or {".", ".."} & set(model.split("/"))
    ):
        raise errors.InvalidArgs(
            f"args.model: a model's name has at most {LONGEST_NAME} characters, no control or invisible characters,"
            " no . or .. between slashes, and is not a URL",
            path="args.model",
        )
    head, slash, rest = model.partition("/")
    if provider:
        name, path = _canonical(provider), "args.provider"
        if slash and _canonical(head) == name:
            model = rest
    elif slash:
        name, path, model = _canonical(head), "args.model", rest
    else:
        name, path = _provider_of(model, default), "args.model"
    if not (name in known() or name in _registered()):
        raise _unknown(name, path)
    if not model:
        raise errors.InvalidArgs(
            f"args.model: the model's name is missing after its provider {name}",
            path="args.model",
        )
    return f"{name}/{model}"


def _canonical(provider: str) -> str:
    name = provider.strip().lower()
    return ALIASES.get(name, name)


def _provider_of(model: str, default: str | None) -> str:
    found = UNAMBIGUOUS.match(model)
    if found is None and default is not None:
        return default
    if found is None:
        raise errors.InvalidArgs(
            f"args.model: the provider of {model!r} is not known: write provider/model, as in openai/{model},"
            " or send args.provider",
            path="args.model",
            expected="provider/model",
        )
    return found.lastgroup or ""


def _unknown(name: str, path: str) -> errors.InvalidArgs:
    common = ", ".join([*LOCAL, *sorted(ADDRESSES)])
    return errors.InvalidArgs(
        f"{path}: unknown provider {name[:100]!r}; known: {common}, and LiteLLM's others (in details.known)",
        path=path,
        known=sorted(known()),
    )


@cache
def known() -> frozenset[str]:
    """Return the names of all providers: the local ones and LiteLLM's."""
    return frozenset((*LOCAL, *ADDRESSES, *_of_litellm()))


def _of_litellm() -> Iterator[str]:
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        return
    folder = Path(spec.origin).parent
    try:
        # The sources of `litellm.provider_list`; importing it would take seconds and hold the GIL.
        text = (folder / "types" / "utils.py").read_text()
        names = _ENUMERATION.search(text)
        table = (folder / "llms" / "openai_like" / "providers.json").read_bytes()
        assert names is not None
        yield from _MEMBER.findall(names[0])
        yield from re.findall(r'^  "([\w-]+)": \{', table.decode(), re.MULTILINE)
    except (OSError, AssertionError):
        import litellm

        yield from (str(getattr(each, "value", each)) for each in litellm.provider_list)


_ENUMERATION = re.compile(r"^class LlmProviders\(.*\n(?:(?:[ \t].*)?\n)*", re.MULTILINE)
_MEMBER = re.compile(r'^    [A-Z0-9_]+ = "([^"]+)"', re.MULTILINE)


def _registered() -> set[str]:
    """Return the providers that the operator's adapter has registered with DSPy or LiteLLM (if they are imported)."""
    found: set[str] = set()
    if "dspy.lm15" in sys.modules:
        for each in sys.modules["dspy.lm15"].registered_providers():
            definition = getattr(each, "definition", each)
            found |= {name for each in definition.spellings for name in (each, each.replace("-", "_"))}
    if "litellm" in sys.modules:
        found |= {each["provider"] for each in sys.modules["litellm"].custom_provider_map}
    return found
