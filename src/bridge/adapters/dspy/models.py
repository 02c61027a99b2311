"""Language models: from settings to DSPy's models, which sessions of equal settings share."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.backend_selection import select_backend
from dspy.clients.engines.litellm_engine import LiteLLMEngine
from dspy.utils.exceptions import LMConfigurationError

from bridge import errors
from bridge.adapters.dspy import providers, supervised_engine
from bridge.adapters.dspy.answer_cache import Answers
from bridge.adapters.dspy.args import LMSettings
from bridge.adapters.dspy.litellm_engine import litellm_errors
from bridge.adapters.dspy.model_errors import lm_error
from bridge.adapters.dspy.retries import Retries
from bridge.security import redaction
from bridge.security.destinations import Address, allows
from bridge.telemetry.logs import take_over_logs, warn

if TYPE_CHECKING:
    from bridge.adapters.dspy.state import State

CONNECTIONS = 4096  # of each model; the worker's threads are the limit that counts
# An engine is made, and connections with it, for each timeout: few different ones.
TIMEOUTS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # seconds

# DSPy's response cache ignores key and endpoint of a model, so sessions would read each other's
# answers; the one on disk holds pickles.
dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)

take_over_logs("dspy")

providers.strip_environment_keys()


class Model:
    """A language model and its settings. Calls nobody. Raises InvalidArgs for settings that send a
    key of the operator's where it may not go, InvalidArgs or LMError where DSPy would not take
    them, QuotaExceeded where there are too many secrets.

    Models of equal settings share one DSPy model, and with it the connections, as long as one of
    them is kept; `scripted` ones do not, because their answers are used up.
    cache: how many answers are kept for each session. session_id: whose its keys are; None: those
    of all sessions. allowed: where keys of the operator's may go besides their providers.
    """

    def __init__(
        self,
        settings: LMSettings,
        cache: int = 0,
        *,
        session_id: str | None = None,
        allowed: tuple[Address, ...] = (),
    ) -> None:
        self._secrets = redaction.hold(settings.secrets, session_id)
        self.session_id = session_id
        self.settings = settings
        self.cache = cache
        _check_destination(settings, allowed)
        self._answers: weakref.WeakKeyDictionary[State, Answers] = weakref.WeakKeyDictionary()
        with _sharing:
            shared = settings.provider != "scripted"
            found = _shared.get(settings) if shared else None
            if found is None:
                found = _made(settings)
            self.lm = found
            if shared:
                _shared[settings] = self.lm

    def answers(self, session: State) -> Answers | None:
        """Return the session's own cache of this model's answers; None where none are kept."""
        if not self.cache:
            return None
        with _sharing:
            return self._answers.setdefault(session, Answers(self.cache))


def from_environment(shared: dict[str, Any]) -> Model | None:
    """Return Gemini with the key in the environment, where that is wanted of a worker that nobody
    has configured: hosts with pools configure one of its workers only."""
    if not shared.get("configures_itself") or not any(map(os.environ.get, providers.GEMINI_KEYS)):
        return None
    return _gemini()


@cache
def _gemini() -> Model:
    name = providers.DEFAULT_GEMINI_MODEL
    model = Model(LMSettings(name, f"{providers.GEMINI}/{name}"))
    warn(f"no language model was configured: using {model.lm.model} and the environment's key")
    return model


def _check_destination(settings: LMSettings, allowed: tuple[Address, ...]) -> None:
    """Raise InvalidArgs where requests with these settings may not go, or where a key from the
    environment would go to an address that the host names."""
    provider = settings.provider
    if provider in providers.OWN:
        return
    if settings.api_key is None:
        providers.check_environment_key(provider)
    if settings.api_base is None:
        return
    address = Address.parse(settings.api_base)
    if address.is_forbidden:
        raise _refused("requests never go to link-local and metadata addresses")
    if allows([*_own_addresses(provider), *allowed], address):
        return
    if settings.api_key is None:
        raise _refused(
            "the worker's own key goes to its provider only: send an api_key for this address (any"
            " text for a server that wants none), or have the operator allow it with --api-base"
        )
    if providers.has_identity(provider):
        raise _refused(
            f"requests to {provider} carry an identity of the worker's machine: only the operator"
            " can allow an address for them, with --api-base"
        )
    if address.leads_to_forbidden():
        raise _refused("this name leads to a link-local or metadata address")


def _own_addresses(provider: str) -> Iterator[Address]:
    for base in (providers.ADDRESSES.get(provider), *providers.environment_bases(provider)):
        with contextlib.suppress(ValueError):
            if base:
                yield Address.parse(base)


def _refused(why: str) -> errors.InvalidArgs:
    return errors.InvalidArgs(f"args.api_base: {why}", path="args.api_base")


_shared: weakref.WeakValueDictionary[LMSettings, dspy.LM] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def in_time(lm: dspy.LM, remaining: float | None) -> dspy.LM:
    """Return `lm`, or one like it that does not wait much longer than the call has."""
    if not isinstance(lm.engine, str):
        return lm
    timeout = _in_time(lm.kwargs["timeout"], remaining)
    return lm if timeout == lm.kwargs["timeout"] else lm.copy(timeout=timeout)


def _in_time(timeout: float, remaining: float | None) -> float:
    if remaining is None:
        return timeout
    return min(timeout, next((each for each in TIMEOUTS if each >= remaining), timeout))


def _made(settings: LMSettings) -> dspy.LM:
    common = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    retries = Retries(settings.retries, settings.retry_wait, settings.retry_cap)
    engine = _own_engine(settings)
    connection: dict[str, Any]
    if engine is not None:
        connection = {"engine": supervised_engine.TappedEngine(engine, priced=False)}
    else:
        given = {"api_key": settings.api_key, "api_base": settings.api_base}
        connection = {name: value for name, value in given.items() if value is not None}
        connection["timeout"] = settings.timeout
    try:
        lm = _lm(settings.model, **connection, **common)
        if engine is not None:
            return lm
        backend = select_backend(lm)
        if not backend.native:
            engine = supervised_engine.TappedEngine(ThroughLiteLLM(connection), retries=retries)
            return _lm(settings.model, engine=engine, **common)
        # By the name "lm15" it never falls back to an engine that is not wrapped; but then it finds
        # no keys that it finds otherwise.
        lm = _lm(settings.model, engine="lm15", **backend.clients, **common)
        lm._engine_store = supervised_engine.NativeEngines(CONNECTIONS, retries)
        return lm
    except LMConfigurationError as error:  # numbers that this model does not take
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error
    except dspy.DSPyError as error:
        raise lm_error(error) from error
    except (ValueError, TypeError) as error:
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error


def _lm(model: str, **settings: Any) -> dspy.LM:
    # DSPy's own retries sleep where no cancel and no deadline can end it.
    return dspy.LM(model, cache=False, num_retries=0, **settings)


class ThroughLiteLLM:
    """An engine for the providers that DSPy's own HTTP stack does not know.

    DSPy would make one for each request, which could not be wrapped for streams and retries.
    """

    def __init__(self, connection: dict[str, Any]) -> None:
        self._connection = connection

    def complete(self, request: Any) -> Any:
        with litellm_errors():
            return self._engine().complete(request)

    def stream(self, request: Any) -> Any:
        with litellm_errors():
            yield from self._engine().stream(request)

    def _engine(self) -> LiteLLMEngine:
        _load_litellm()
        run = supervised_engine.running.get()
        remaining = None if run is None else run.context.remaining
        timeout = _in_time(self._connection["timeout"], remaining)
        return LiteLLMEngine(**{**self._connection, "timeout": timeout})


@cache
def _load_litellm() -> None:
    import litellm

    litellm.suppress_debug_info = True  # it would print beside the logs
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        take_over_logs(name)
    _guard_http_clients()
    _keep_refusals()
    providers.strip_environment_keys()
    redaction.read_environment()  # it reads a file .env


def _guard_http_clients() -> None:
    """Keep LiteLLM's clients from following redirects, and OpenAI's from sending headers of the
    environment to others.

    httpx would take all headers but Authorization with it to another host, as x-api-key. DSPy's own
    client follows no redirects and adds no headers.
    """
    from litellm.llms.custom_httpx.http_handler import HTTPHandler
    from litellm.llms.openai.common_utils import BaseOpenAILLM

    def guarded(make: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            client = make(*args, **kwargs)
            if client is not None:
                client.follow_redirects = False
                hooks = client.event_hooks["request"]
                if _drop_openai_headers not in hooks:
                    hooks.append(_drop_openai_headers)
            return client

        return made

    own, openai = HTTPHandler.create_client, BaseOpenAILLM._get_sync_http_client
    for owner, name, made in (
        (HTTPHandler, "create_client", guarded(own)),
        (BaseOpenAILLM, "_get_sync_http_client", staticmethod(guarded(openai))),
    ):
        setattr(owner, name, made)


def _keep_refusals() -> None:
    """Read the text of refusals from streams before LiteLLM drops it."""
    from litellm import CustomStreamWrapper

    handle = CustomStreamWrapper.handle_openai_chat_completion_chunk

    @wraps(handle)
    def handle_openai_chat_completion_chunk(self: Any, chunk: Any) -> Any:
        run = supervised_engine.running.get()
        for choice in getattr(chunk, "choices", None) or ():
            refused = getattr(getattr(choice, "delta", None), "refusal", None)
            if run is not None and isinstance(refused, str):
                run.refusal += refused
        return handle(self, chunk)

    CustomStreamWrapper.handle_openai_chat_completion_chunk = handle_openai_chat_completion_chunk


def _drop_openai_headers(request: Any) -> None:
    with contextlib.suppress(ValueError):
        if allows(_own_addresses("openai"), Address.parse(str(request.url))):
            return
    for name, value in providers.openai_headers():
        if request.headers.get(name) == value:
            del request.headers[name]


def _own_engine(settings: LMSettings) -> Any:
    """Return the engine that answers in this process; None for providers elsewhere."""
    if settings.provider == "offline":
        from bridge.adapters.offline import OfflineReader  # loads numpy

        return OfflineReader()
    if settings.provider == "scripted":
        from bridge.adapters.dspy.scripted import ScriptedAnswers

        return ScriptedAnswers(json.loads(settings.answers or "[]"))
    return None
