"""Settings of a model that its provider would ignore or change: they are refused before a request is sent."""

from __future__ import annotations

from typing import Any

from dspy import lm15

from bridge import errors
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.request_config import config_of, options_for

# What a provider does with a setting instead of what was asked for (lm15.Adaptation.action).
_DEVIATIONS = ("dropped", "clamped", "substituted", "client_side")
# The names of settings in lm15, where they differ from ours.
_NAMES = {"reasoning.effort": "reasoning_effort", "reasoning": "reasoning_effort", "user_id": "user"}


def check_settings(lm: LanguageModel, options: dict[str, Any], path: str) -> None:
    """Raise InvalidArgs if the provider of `lm` would not do what the settings of `lm` and `options` say.

    What is called through LiteLLM refuses such settings itself, with each request. path: of the settings in the args.
    """
    try:
        config = config_of({**lm.kwargs, **options_for(lm.kwargs, options)}, lm.compat)
        if lm.route is None:
            return
        adaptations = lm.route.plan(lm15.Request(lm.model, (lm15.Message.user("x"),), config=config))
    except lm15.UnsupportedFeatureError as error:
        raise _refused(error.feature or "", error.message, path) from error
    except (lm15.LM15Error, TypeError, ValueError) as error:
        raise errors.InvalidArgs(f"{path}: {error}", path=path) from error
    for each in adaptations:
        if each.action in _DEVIATIONS:
            raise _refused(each.field, each.reason, path)


def _refused(field: str, reason: str, path: str) -> errors.InvalidArgs:
    name = field.removeprefix("config.")
    where = f"{path}.{_NAMES.get(name, name)}" if name else path
    return errors.InvalidArgs(f"{where}: {reason}", path=where)
