"""DSPy's language models: one object for all sessions of equal settings."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.backend_selection import select_backend
from dspy.clients.engines.lm15_engine import LM15Engine
from dspy.lm15 import RouterConfig, registered_providers
from dspy.utils.exceptions import LMConfigurationError

from bridge import errors
from bridge.adapters.dspy import credentials, providers
from bridge.adapters.dspy.engines.litellm import LiteLLMProviders
from bridge.adapters.dspy.engines.retries import Retries, timeout_within
from bridge.adapters.dspy.engines.supervised import NativeEngines, SupervisedEngine
from bridge.adapters.dspy.language_model import LanguageModel
from bridge.adapters.dspy.model_errors import lm_error
from bridge.adapters.dspy.request_config import for_several, options_for
from bridge.adapters.dspy.settings import LMSettings, Model
from bridge.adapters.dspy.unsupported import check_settings
from bridge.telemetry.logs import take_over_logs

if TYPE_CHECKING:
    from bridge._dispatch import Context

CONNECTIONS = 4096  # of each model; the number of worker threads is the limit in practice

# DSPy's cache ignores the key and the address of a model, so sessions would read each other's answers; the one on disk
# holds pickles.
dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)

take_over_logs("dspy")

credentials.strip_environment_keys()


def lm_for(models: tuple[Model, ...], config: dict[str, Any], context: Context) -> LanguageModel:
    """Return DSPy's model for the first of `models`, with the others as fallbacks.

    config: the options of a run. Its timeout is not much longer than the time that is left for the call. Raises
    InvalidArgs for options that a provider lacks, and what `connect` raises.
    """
    lms = [_timed(connect(model, context.shared), context) for model in models]
    if config:
        for lm in lms:
            check_settings(lm, config, "args.options")
        lms = [lm.copy(**options_for(lm.kwargs, config)) for lm in lms]
    if len(lms) == 1:
        return lms[0]
    first = lms[0].copy()
    first.fallbacks = tuple(lms[1:])
    return first


def _timed(lm: LanguageModel, context: Context) -> LanguageModel:
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


def _create(settings: LMSettings) -> LanguageModel:
    try:
        lm = _local(settings) if settings.provider in providers.LOCAL else _remote(settings)
        check_settings(lm, {}, "args")
        return lm
    except LMConfigurationError as error:  # numbers that this model does not accept
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error
    except dspy.DSPyError as error:
        raise lm_error(error) from error
    except (ValueError, TypeError) as error:
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error


def _local(settings: LMSettings) -> LanguageModel:
    """Return a model that answers in this process or is called by the host."""
    engine = providers.LOCAL[settings.provider].engine(settings)
    return _lm(settings, engine=SupervisedEngine(engine, priced=False, retries=_retries(settings)))


def _remote(settings: LMSettings) -> LanguageModel:
    """Return a model that is called over HTTP: by DSPy itself if it knows the provider, else by LiteLLM."""
    given = {name: getattr(settings, name) for name in ("api_key", "api_base", "api_version", "timeout")}
    connection = {name: value for name, value in given.items() if value is not None}
    headers = settings.extra_headers or {}
    retries = _retries(settings)
    backend = select_backend(_lm(settings, **connection))
    if not backend.native:
        if settings.model_type != "chat":
            raise errors.InvalidArgs(
                f"args.model_type: DSPy has no other interface of {settings.provider} than chat", path="args.model_type"
            )
        connection |= {"extra_headers": headers} if headers else {}
        return _lm(settings, engine=SupervisedEngine(LiteLLMProviders(connection), retries=retries))
    # The name "lm15" rules out engines that would not be wrapped, but also the keys that DSPy finds for other names.
    lm = _lm(settings, engine="lm15", **backend.clients)
    lm._engine_store = NativeEngines(CONNECTIONS, retries, headers)
    lm.provider_name = backend.resolution.provider
    lm.compat = backend.resolution.compat
    lm.route = LM15Engine(RouterConfig(env={}, providers=registered_providers()), model_type=settings.model_type)
    return lm


def _retries(settings: LMSettings) -> Retries:
    return Retries(settings.retries, settings.retry_wait, settings.retry_cap)


def _lm(settings: LMSettings, **connection: Any) -> LanguageModel:
    given = for_several(settings.given())
    # DSPy's own retries sleep, and neither a cancel nor a deadline ends that.
    lm = LanguageModel(
        settings.model, model_type=settings.model_type, cache=False, num_retries=0, **given, **connection
    )
    lm.settings = settings
    return lm
