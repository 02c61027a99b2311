"""Which language models a program runs on: those of the call, its own, the session's, or the environment's."""

from __future__ import annotations

import os
import re
import weakref
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy import providers
from bridge.adapters.dspy.format_choice import FormatChoice
from bridge.adapters.dspy.settings import LMSettings, Model
from bridge.telemetry.logs import warn

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.state import Program, State

MOST_FALLBACKS = 8
NAME = re.compile(r"[\w.:-]{1,128}")  # of a configured model; without a slash, which models of providers have


class ModelsInOrder(msgspec.Struct, forbid_unknown_fields=True):
    """Names of models: a request that fails on one, but may succeed on another, is sent to the next."""

    models: Annotated[list[str], msgspec.Meta(min_length=1, max_length=MOST_FALLBACKS)]


ModelChoice = str | ModelsInOrder


def names_of(choice: ModelChoice | None, path: str = "args.model") -> tuple[str, ...]:
    """Return the names of the models that a host has chosen, in order; none for None.

    path: of the choice in the args. Raises InvalidArgs for what cannot be a name, and for a name that occurs twice.
    """
    if choice is None:
        return ()
    names = [choice] if isinstance(choice, str) else choice.models
    for number, name in enumerate(names):
        where = path if isinstance(choice, str) else f"{path}.models[{number}]"
        if not is_name(name) and not _needs_no_settings(name):
            raise errors.InvalidArgs(
                f"{where}: expected the name of a configured model (configure_lm name), or host/NAME", path=where
            )
        if name in names[:number]:
            raise errors.InvalidArgs(f"{where}: the model {name} occurs twice", path=where)
    return tuple(names)


def is_name(text: str) -> bool:
    """Return whether a configured model may have that name."""
    return NAME.fullmatch(text) is not None


def models_for(
    program: Program, names: tuple[str, ...], state: State, context: Context, path: str = "args.model"
) -> tuple[Model, ...]:
    """Return the models for a run of `program`, in order: those of the call (`names`), its own, or the default one.

    path: of the names in the args. Returns () if no model is configured. Raises LMNotConfigured if there is none of a
    name.
    """
    if names:
        return tuple([_named(name, state, context, f"{path}: ") for name in names])
    definition = program.definition
    if definition.models:
        return tuple([_named(name, state, context, f"program {program.id}: ") for name in definition.models])
    default = state.model(context.shared)
    if definition.model is not None:
        return (_own_model(program, definition.model, default),)
    return default_models(state, context)


def extractors_of(format: FormatChoice | None, state: State, context: Context, path: str) -> tuple[Model, ...]:
    """Return the model that a format in two steps names for its second step; () if it names none.

    path: of the name in the args. Raises LMNotConfigured if there is none of that name, InvalidArgs for what cannot be
    a name.
    """
    if format is None:
        return ()
    return tuple([_named(name, state, context, f"{path}: ") for name in names_of(format.model, path)])


def default_models(state: State, context: Context) -> tuple[Model, ...]:
    """Return the session's default model, or else the environment's; () if there is none."""
    model = state.model(context.shared) or _from_environment(context.shared)
    return () if model is None else (model,)


def configured(models: tuple[Model, ...]) -> tuple[Model, ...]:
    """Return `models`. Raises LMNotConfigured if there are none."""
    if not models:
        raise errors.LMNotConfigured(
            "no language model is configured: send configure_lm first (provider offline needs neither key nor network)"
        )
    return models


def _named(name: str, state: State, context: Context, where: str) -> Model:
    model = state.model(context.shared, name)
    if model is not None:
        return model
    if _needs_no_settings(name):
        return _unconfigured(name)
    known = sorted(state.model_names(context.shared))
    raise errors.LMNotConfigured(
        f'{where}no model of the name {name} is configured: send configure_lm {{"name": "{name}", …}} first',
        name=name,
        known=known,
    )


def _needs_no_settings(name: str) -> bool:
    """Return whether `name` is a model of the host, or the offline reader, which can be used without configure_lm."""
    provider, _, rest = name.partition("/")
    return provider in (providers.HOST, "offline") and is_name(rest)


@lru_cache(maxsize=256)
def _unconfigured(name: str) -> Model:
    return Model(LMSettings(name, name))


def _own_model(program: Program, name: str, model: Model | None) -> Model:
    """Return the model of a program that names its model: the session's settings, with that model."""
    full_name = providers.full_model(name, default=providers.GEMINI)
    settings = model.settings.with_model(name, full_name) if model else LMSettings(name, full_name)
    own = _own_models.get(program)
    if own is None or own[0] is not model or own[1].settings != settings:
        made = Model(settings) if model is None else model.with_settings(settings)
        own = _own_models[program] = (model, made)
    return own[1]


# The default model of the last run of a program, and the program's own model that was made from it.
_own_models: weakref.WeakKeyDictionary[Program, tuple[Model | None, Model]] = weakref.WeakKeyDictionary()


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
