"""DSPy's language models: which one a program runs on, and one object for all sessions of equal settings."""

from __future__ import annotations

import os
import threading
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.backend_selection import select_backend
from dspy.utils.exceptions import LMConfigurationError

from bridge import errors
from bridge.adapters.dspy import credentials, providers
from bridge.adapters.dspy.engines.litellm import LiteLLMProviders
from bridge.adapters.dspy.engines.retries import Retries, timeout_within
from bridge.adapters.dspy.engines.supervised import NativeEngines, SupervisedEngine
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.model_errors import lm_error
from bridge.adapters.dspy.settings import LMSettings, Model
from bridge.telemetry.logs import take_over_logs, warn

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.state import Program

CONNECTIONS = 4096  # of each model; the number of worker threads is the limit in practice

# DSPy's cache ignores the key and the address of a model, so sessions would read each other's answers; the one on disk
# holds pickles.
dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)

take_over_logs("dspy")

credentials.strip_environment_keys()


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


def lm_for(model: Model, context: Context) -> LanguageModel:
    """Return DSPy's model for `model`, with a timeout not much longer than the time that is left for the call."""
    lm = connect(model, context.shared)
    if not isinstance(lm.engine, str):
        return lm
    timeout = timeout_within(lm.kwargs["timeout"], context.remaining)
    if timeout == lm.kwargs["timeout"]:
        return lm
    copies = _copies.setdefault(lm, {})
    if timeout not in copies:
        copies[timeout] = lm.copy(timeout=timeout)
    return copies[timeout]


# Copies of models with shorter timeouts, by timeout; there are few, see `TIMEOUTS` of retries.py.
_copies: weakref.WeakKeyDictionary[LanguageModel, dict[float, LanguageModel]] = weakref.WeakKeyDictionary()


def connect(model: Model, shared: dict[str, Any]) -> LanguageModel:
    """Return DSPy's model for `model`; it sends no request. Lives as long as a model of equal settings.

    Raises InvalidArgs for settings that would send a key of the operator where it must not go, and InvalidArgs or
    LMError for settings that DSPy does not accept.
    """
    lm = _lms.get(model)
    if lm is None:
        credentials.check_destination(model.settings, shared.get("api_bases", ()))
        with _connecting:
            lm = _lms.get(model)
            if lm is None:
                lm = _lms[model] = _shared_lm(model.settings)
    return lm


_lms: weakref.WeakKeyDictionary[Model, LanguageModel] = weakref.WeakKeyDictionary()
_lms_by_settings: weakref.WeakValueDictionary[LMSettings, LanguageModel] = weakref.WeakValueDictionary()
_connecting = threading.Lock()


def _shared_lm(settings: LMSettings) -> LanguageModel:
    """Return the DSPy model of `settings`, and with it its connections, if one is in use, else a new one."""
    local = providers.LOCAL.get(settings.provider)
    if local is not None and not local.is_shared:
        return _create(settings)
    lm = _lms_by_settings.get(settings)
    if lm is None:
        lm = _lms_by_settings[settings] = _create(settings)
    return lm


def _own_model(program: Program, name: str, model: Model | None) -> Model:
    """Return the model of a program that names its model: the session's settings, with that model."""
    full_name = providers.full_model(name, default=providers.GEMINI)
    settings = model.settings.with_model(name, full_name) if model else LMSettings(name, full_name)
    size, session_id = (model.cache, model.session_id) if model else (0, None)
    own = _own_models.get(program)
    if own is None or (own.settings, own.cache) != (settings, size):
        own = _own_models[program] = Model(settings, size, session_id=session_id)
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


def _create(settings: LMSettings) -> LanguageModel:
    try:
        return _local(settings) if settings.provider in providers.LOCAL else _remote(settings)
    except LMConfigurationError as error:  # numbers that this model does not accept
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error
    except dspy.DSPyError as error:
        raise lm_error(error) from error
    except (ValueError, TypeError) as error:
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error


def _local(settings: LMSettings) -> LanguageModel:
    """Return a model that answers in this process."""
    engine = providers.LOCAL[settings.provider].engine(settings)
    return _lm(settings, engine=SupervisedEngine(engine, priced=False))


def _remote(settings: LMSettings) -> LanguageModel:
    """Return a model that is called over HTTP: by DSPy itself if it knows the provider, else by LiteLLM."""
    given = {"api_key": settings.api_key, "api_base": settings.api_base, "timeout": settings.timeout}
    connection = {name: value for name, value in given.items() if value is not None}
    retries = Retries(settings.retries, settings.retry_wait, settings.retry_cap)
    backend = select_backend(_lm(settings, **connection))
    if not backend.native:
        return _lm(settings, engine=SupervisedEngine(LiteLLMProviders(connection), retries=retries))
    # The name "lm15" rules out engines that would not be wrapped, but also the keys that DSPy finds for other names.
    lm = _lm(settings, engine="lm15", **backend.clients)
    lm._engine_store = NativeEngines(CONNECTIONS, retries)
    lm.provider_name = backend.resolution.provider
    return lm


def _lm(settings: LMSettings, **connection: Any) -> LanguageModel:
    # DSPy's own retries sleep, and neither a cancel nor a deadline ends that.
    return LanguageModel(
        settings.model,
        cache=False,
        num_retries=0,
        temperature=settings.temperature,
        max_tokens=settings.max_tokens,
        **connection,
    )
