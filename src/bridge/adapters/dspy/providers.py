"""Which provider serves a model, what providers there are, and which keys of the environment they
take. Imports neither DSPy nor LiteLLM: that would hold up the first `configure_lm` for seconds."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from bridge import errors

OWN = ("offline", "scripted")  # these run in the worker
ALIASES = {"google": "gemini"}  # names that hosts use -> DSPy's
GEMINI = "gemini"
GEMINI_KEYS = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
DEFAULT_GEMINI_MODEL = "gemini-2.0-flash"

# Bare model names that only one provider uses. Names of open models (gpt-oss-…, gemma-…,
# mistral-…) are not among them: many providers serve those.
SURE = re.compile(
    r"(?P<openai>(?:chat)?gpt-\d|chatgpt-|(?:o1|o3|o4)(?:$|-)|text-embedding-(?:3|ada))"
    r"|(?P<anthropic>claude-)|(?P<gemini>gemini-)|(?P<xai>grok-\d)"
)

# Where a provider's own API is: LiteLLM's defaults, as far as hosts name them.
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

# Their requests carry, or are signed with, an identity of the machine besides the API key.
WITH_IDENTITY = (
    *("aws_", "azure", "bedrock", "chatgpt", "databricks", "gdc", "gigachat", "github_copilot"),
    "oci",
    *("microsoft_", "s3_vectors", "sagemaker", "sap", "snowflake", "vertex_ai", "watsonx"),
)

_NAME = re.compile(r"\S+(?: \S+)*")
LONGEST_NAME = 512  # characters


def full_model(model: str, provider: str | None = None, default: str | None = None) -> str:
    """Return DSPy's name of `model`, its provider first.

    A named provider wins; else what stands before the first slash is the provider, and a bare
    name's is known by its beginning, or `default`. Raises InvalidArgs where none is known.
    """
    # A name is a part of the address at some providers.
    if (
        not (_NAME.fullmatch(model) and model.isprintable())
        or len(model) > LONGEST_NAME
        or "://" in model
        or {".", ".."} & set(model.split("/"))
    ):
        raise errors.InvalidArgs(
            f"args.model: a model's name has at most {LONGEST_NAME} characters, none of them"
            " a control character or invisible, no . or .. between slashes, and is no address",
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
        name, path = _sure_provider(model, default), "args.model"
    if not (name in known() or name in _registered()):
        raise _unknown(name, path)
    if not model:
        raise errors.InvalidArgs(
            f"args.model: the model's name is missing behind its provider {name}",
            path="args.model",
        )
    return f"{name}/{model}"


def _canonical(provider: str) -> str:
    name = provider.strip().lower()
    return ALIASES.get(name, name)


def _sure_provider(model: str, default: str | None) -> str:
    found = SURE.match(model)
    if found is None and default is not None:
        return default
    if found is None:
        raise errors.InvalidArgs(
            f"args.model: {model!r} does not say which provider serves it: write provider/model,"
            f" as in openai/{model}, or name it in args.provider",
            path="args.model",
            expected="provider/model",
        )
    return found.lastgroup or ""


def _unknown(name: str, path: str) -> errors.InvalidArgs:
    common = ", ".join([*OWN, *sorted(ADDRESSES)])
    return errors.InvalidArgs(
        f"{path}: unknown provider {name[:100]!r}; known: {common}, and LiteLLM's others (in details.known)",
        path=path,
        known=sorted(known()),
    )


@cache
def known() -> frozenset[str]:
    """Return the names of all providers: our own and LiteLLM's."""
    return frozenset((*OWN, *ADDRESSES, *_of_litellm()))


def _of_litellm() -> Iterator[str]:
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        return
    place = Path(spec.origin).parent
    try:
        # The enumeration that `litellm.provider_list` is made of, and the table beside it. Read
        # and not imported: that takes seconds and holds the GIL.
        text = (place / "types" / "utils.py").read_text()
        names = _ENUMERATION.search(text)
        table = (place / "llms" / "openai_like" / "providers.json").read_bytes()
        assert names is not None
        yield from _MEMBER.findall(names[0])
        yield from re.findall(r'^  "([\w-]+)": \{', table.decode(), re.MULTILINE)
    except (OSError, AssertionError):
        import litellm

        yield from (str(getattr(each, "value", each)) for each in litellm.provider_list)


_ENUMERATION = re.compile(r"^class LlmProviders\(.*\n(?:(?:[ \t].*)?\n)*", re.MULTILINE)
_MEMBER = re.compile(r'^    [A-Z0-9_]+ = "([^"]+)"', re.MULTILINE)


def _registered() -> set[str]:
    """Return the providers that an adapter of the operator's has registered with DSPy or LiteLLM,
    which it has imported for that."""
    found: set[str] = set()
    if "dspy.lm15" in sys.modules:
        for each in sys.modules["dspy.lm15"].registered_providers():
            definition = getattr(each, "definition", each)
            found |= {name for each in definition.spellings for name in (each, each.replace("-", "_"))}
    if "litellm" in sys.modules:
        found |= {each["provider"] for each in sys.modules["litellm"].custom_provider_map}
    return found


def has_identity(provider: str) -> bool:
    """Return whether the provider's requests carry more of this machine's than an API key."""
    return provider.startswith(WITH_IDENTITY)


def environment_keys(provider: str) -> list[str]:
    """Return the names of the variables in the environment that are the provider's keys."""
    prefix = f"{provider.upper().replace('-', '_')}_"
    names = [name for name in os.environ if name.startswith(prefix) and _KEY.search(name)]
    return [*names, *(GEMINI_KEYS if provider == GEMINI else ())]


def openai_headers() -> Iterator[tuple[str, str]]:
    """Yield the headers that OpenAI's client takes from the environment, wherever it sends them."""
    for variable in ("OPENAI_ORGANIZATION", "OPENAI_ORG_ID"):
        yield "OpenAI-Organization", os.environ.get(variable, "").strip()
    yield "OpenAI-Project", os.environ.get("OPENAI_PROJECT_ID", "").strip()
    for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines():
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def environment_bases(provider: str) -> list[str]:
    """Return the addresses in the environment that the operator has chosen for the provider."""
    prefix = provider.upper().replace("-", "_")
    found = (os.environ.get(f"{prefix}_{end}") for end in ("API_BASE", "BASE_URL", "BASE"))
    return [base for base in found if base]


_KEY = re.compile(r"(?:KEY|TOKEN)$")


def header_value(key: str) -> str:
    """Return `key` without surrounding white space. Raises ValueError, without the key, for what
    cannot be the value of an HTTP header. Of Latin-1 only ASCII can: not every client that is used
    here sends more."""
    key = key.strip()
    if len(key) > LONGEST_KEY:
        raise ValueError(f"it has more than {LONGEST_KEY} characters")
    if not key.isascii() or not key.isprintable():
        raise ValueError("it has a line break, another control character, or one beyond ASCII")
    return key


LONGEST_KEY = 8192  # characters; the usual limit of servers for a header


def strip_environment_keys() -> None:
    """Strip white space around the keys in the environment: a file's last line break often gets
    in, and the libraries below send keys as they are."""
    for name, value in list(os.environ.items()):
        if _KEY.search(name) and value != value.strip():
            os.environ[name] = value.strip()


def check_environment_key(provider: str) -> None:
    """Raise InvalidArgs, without the key, for one in the environment that cannot be sent."""
    for name in environment_keys(provider):
        try:
            header_value(os.environ.get(name, ""))
        except ValueError as error:
            raise errors.InvalidArgs(
                f"the key in the worker's environment variable {name} cannot be sent: {error}",
                path="args.api_key",
                variable=name,
            ) from None
