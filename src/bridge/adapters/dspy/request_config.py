"""Settings of requests to models, as DSPy's engines take them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
from dspy import lm15
from dspy.clients.backend_selection import CLIENT_KEYS

SEVERAL_TEMPERATURE = 0.7  # DSPy's, for several completions, which would be much alike
_NOT_IN_REQUESTS = {"n", "rollout_id"} | CLIENT_KEYS


def for_several(settings: dict[str, Any]) -> dict[str, Any]:
    """Return `settings`, with a temperature if they are for several completions and have none."""
    if (settings.get("n") or 1) > 1 and settings.get("temperature") is None:
        return {**settings, "temperature": SEVERAL_TEMPERATURE}
    return settings


def options_for(settings: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a run as settings of a `dspy.LM` that has the others in `settings`."""
    options = dict(options)
    if "max_tokens" in options and "max_completion_tokens" in settings:  # DSPy's name for models that reason
        options["max_completion_tokens"] = options.pop("max_tokens")
    temperature = for_several({**settings, **options}).get("temperature")
    return options if temperature is None else {**options, "temperature": temperature}


def config_of(settings: dict[str, Any], compat: Any = None) -> lm15.Config:
    """Return the settings of a `dspy.LM` as the configuration of its requests. compat: of a provider like OpenAI.

    Raises LM15Error, TypeError or ValueError for what it cannot contain.
    """
    given = {name: value for name, value in settings.items() if value is not None and name not in _NOT_IN_REQUESTS}
    return _config(msgspec.json.encode(given), compat)


@lru_cache(maxsize=1024)
def _config(settings: bytes, compat: Any) -> lm15.Config:
    request = {"model": "x", "messages": [{"role": "user", "content": "x"}], **msgspec.json.decode(settings)}
    return lm15.request_from_openai_chat(request, compat=compat).config
