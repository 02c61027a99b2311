"""Language models: from settings to DSPy's models, which sessions of equal settings share."""

from __future__ import annotations

import json
import os
import threading
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.backend_selection import select_backend
from dspy.clients.engines.litellm_engine import LiteLLMEngine

from bridge import errors
from bridge.adapters.dspy import streaming
from bridge.adapters.dspy.answers import Answers
from bridge.adapters.dspy.failures import lm_error
from bridge.adapters.dspy.litellm_errors import litellm_errors
from bridge.adapters.dspy.messages import LMSettings
from bridge.adapters.dspy.retries import Retries
from bridge.telemetry import keep_secret, take_over_logs

if TYPE_CHECKING:
    from bridge.adapters.dspy.state import State

CONNECTIONS = 4096  # of each model; the worker's threads are the limit that counts
# An engine is made, and connections with it, for each timeout: few different ones.
TIMEOUTS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # seconds

# DSPy's response cache ignores key and endpoint of a model, so sessions would read each other's
# answers; the one on disk holds pickles.
dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)

take_over_logs("dspy")

# Providers repeat the key that they refuse.
for _name, _value in os.environ.items():
    if _name.endswith(("_API_KEY", "_TOKEN", "_SECRET", "_SECRET_KEY", "_ACCESS_KEY")):
        keep_secret(_value, own=True)


class Model:
    """A language model and its settings. Raises InvalidArgs or LMError where DSPy would not take
    them; calls nobody.

    Models of equal settings share one DSPy model, and with it the connections, as long as one of
    them is kept; `scripted` ones do not, because their answers are used up.
    cache: how many answers are kept for each session.
    """

    def __init__(self, settings: LMSettings, cache: int = 0) -> None:
        self.settings = settings
        self.cache = cache
        self._answers: weakref.WeakKeyDictionary[State, Answers] = weakref.WeakKeyDictionary()
        with _sharing:
            shared = settings.provider != "scripted"
            found = _shared.get(settings) if shared else None
            self.lm = _made(settings) if found is None else found
            if shared:
                _shared[settings] = self.lm

    def answers(self, session: State) -> Answers | None:
        """What the session keeps of this model's answers; no other session ever sees it."""
        if not self.cache:
            return None
        with _sharing:
            return self._answers.setdefault(session, Answers(self.cache))


_shared: weakref.WeakValueDictionary[LMSettings, dspy.LM] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


def in_time(lm: dspy.LM, remaining: float | None) -> dspy.LM:
    """`lm`, or one like it that does not wait much longer than the call has."""
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
        connection = {"engine": streaming.TappedEngine(engine, priced=False)}
    else:
        given = {"api_key": settings.api_key, "api_base": settings.api_base}
        connection = {name: value for name, value in given.items() if value is not None}
        connection["timeout"] = settings.timeout
    try:
        lm = _lm(settings.model, **connection, **common)
        if engine is not None:
            return lm
        if not select_backend(lm).native:
            engine = streaming.TappedEngine(ThroughLiteLLM(connection), retries=retries)
            return _lm(settings.model, engine=engine, **common)
        # By the name "lm15" it never falls back to an engine that is not wrapped.
        lm = _lm(settings.model, engine="lm15", **connection, **common)
        lm._engine_store = streaming.NativeEngines(CONNECTIONS, retries)
        return lm
    except dspy.DSPyError as error:
        raise lm_error(error) from error
    except (ValueError, TypeError) as error:
        raise errors.InvalidArgs(f"args.model: {error}", path="args.model") from error


def _lm(model: str, **settings: Any) -> dspy.LM:
    # DSPy's own retries sleep where no cancel and no deadline can end it.
    return dspy.LM(model, cache=False, num_retries=0, **settings)


class ThroughLiteLLM:
    """The way to the providers that DSPy's own HTTP stack does not know. DSPy would go it by
    itself, but for each request with an engine that nobody can tap."""

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
        run = streaming.running.get()
        remaining = None if run is None else run.context.remaining
        timeout = _in_time(self._connection["timeout"], remaining)
        return LiteLLMEngine(**{**self._connection, "timeout": timeout})


@cache
def _load_litellm() -> None:
    import litellm

    litellm.suppress_debug_info = True  # it would print beside the logs
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        take_over_logs(name)


def _own_engine(settings: LMSettings) -> Any:
    """The model that answers in this process, for the providers that are ours."""
    if settings.provider == "offline":
        from bridge.adapters.dspy.offline import OfflineReader  # loads numpy

        return OfflineReader()
    if settings.provider == "scripted":
        from bridge.adapters.dspy.scripted import ScriptedAnswers

        return ScriptedAnswers(json.loads(settings.answers or "[]"))
    return None
