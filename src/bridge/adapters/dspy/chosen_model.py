"""Which language model a program runs on: its own, the session's, or the environment's."""

from __future__ import annotations

import os
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

from bridge import errors
from bridge.adapters.dspy import providers
from bridge.adapters.dspy.settings import LMSettings, Model
from bridge.telemetry.logs import warn

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.state import Program


def model_for(program: Program, model: Model | None, context: Context) -> Model:
    """Return the model that `program` runs on: its own, the session's (`model`), or the environment's.

    Raises LMNotConfigured if there is none.
    """
    if program.definition.model is not None:
        return _own_model(program, program.definition.model, model)
    return model_or_default(model, context)


def model_or_default(model: Model | None, context: Context) -> Model:
    """Return the session's model (`model`), or the environment's. Raises LMNotConfigured if there is none."""
    model = model or _from_environment(context.shared)
    if model is None:
        raise errors.LMNotConfigured(
            "no language model is configured: send configure_lm first (provider offline needs neither key nor network)"
        )
    return model


def _own_model(program: Program, name: str, model: Model | None) -> Model:
    """Return the model of a program that names its model: the session's settings, with that model."""
    full_name = providers.full_model(name, default=providers.GEMINI)
    settings = model.settings.with_model(name, full_name) if model else LMSettings(name, full_name)
    sizes, session_id = ((model.cache, model.history), model.session_id) if model else ((0, 0), None)
    own = _own_models.get(program)
    if own is None or (own.settings, (own.cache, own.history)) != (settings, sizes):
        own = _own_models[program] = Model(settings, *sizes, session_id=session_id)
    return own


_own_models: weakref.WeakKeyDictionary[Program, Model] = weakref.WeakKeyDictionary()


def _from_environment(shared: dict[str, Any]) -> Model | None:
    """Return Gemini with the environment's key if the operator allows the worker to configure itself, else None.

    Hosts with a pool of workers configure only one of them.
    """
    if not shared.get("configures_itself") or not any(map(os.environ.get, providers.GEMINI_KEYS)):
        return None
    return _gemini()


@cache
def _gemini() -> Model:
    name = providers.DEFAULT_GEMINI_MODEL
    model = Model(LMSettings(name, f"{providers.GEMINI}/{name}"))
    warn(f"no language model was configured: using {model.settings.model} and the environment's key")
    return model
