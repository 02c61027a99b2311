"""DSPy's language model, with a direct way from a prompt to its engine.

For each request DSPy checks and converts the messages, selects the engine again and estimates a price, which takes more
time than everything else in a call. Messages of plain text with the usual settings need none of that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import dspy
from dspy import lm15
from dspy.clients.backend_selection import CLIENT_KEYS
from dspy.clients.call_result import legacy_output
from dspy.clients.capabilities import Capabilities, capabilities
from dspy.clients.engines.lm15_engine import timeouts_for
from dspy.clients.errors import error_boundary
from dspy.utils.exceptions import LMUnsupportedFeatureError

from bridge.adapters.dspy.current_run import call_of_run
from bridge.adapters.dspy.request_config import config_of

if TYPE_CHECKING:
    from dspy.clients.engines.lm15_engine import LM15Engine

    from bridge.adapters.dspy.current_run import ModelCall
    from bridge.adapters.dspy.settings import LMSettings

Answer = TypeVar("Answer")

log = logging.getLogger("dspy.clients.lm")

# Whether the tests have compared this version of DSPy with what the adapter does in its place. If not, DSPy does it.
IS_COMPARED = dspy.__version__.startswith("3.4.")


class LanguageModel(dspy.LM):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.LM` that can also be asked for a text, with the same effect as calling it.

    settings: those that it was created from. provider_name: DSPy's name of the provider, for errors. compat: how the
    provider differs from OpenAI. route: an engine that knows what the provider supports; None: DSPy does not call it
    itself. fallbacks: the models that a request is sent to, in order, if it fails here but may succeed there.
    """

    settings: LMSettings | None = None
    provider_name: str | None = None
    compat: Any = None
    route: LM15Engine | None = None
    fallbacks: tuple[LanguageModel, ...] = ()

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> Any:
        def answer(lm: LanguageModel) -> Any:
            is_request = isinstance(prompt, lm15.Request) and prompt.model != lm.model
            asked = replace(prompt, model=lm.model) if is_request else prompt
            return super().__call__(asked, messages=messages, **kwargs)

        return self._first(answer, kwargs)

    def copy(self, **kwargs: Any) -> LanguageModel:
        """Return a copy with other settings, of which each fallback has them too."""
        copied: LanguageModel = super().copy(**kwargs)
        copied.fallbacks = tuple([each.copy(**kwargs) for each in self.fallbacks])
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> LanguageModel:
        """Return this: copies of a program run on the same model."""
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._features: list[Capabilities] = []  # shared by copies

    @property
    def features(self) -> Capabilities:
        """Return what the provider offers for this model, as far as DSPy knows."""
        if not self._features:
            self._features.append(capabilities(self))
        return self._features[0]

    @property
    def supports_function_calling(self) -> bool:
        return bool(self.features.function_calling)

    @property
    def supports_reasoning(self) -> bool:
        return bool(self.features.reasoning)

    @property
    def supports_response_schema(self) -> bool:
        return bool(self.features.response_schema)

    @property
    def supported_params(self) -> set[str]:
        return set(self.features.params)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        """Call this on another thread: engines are not asynchronous."""
        return await asyncio.to_thread(self, *args, **kwargs)

    def ask(self, messages: Sequence[tuple[str, str]], settings: dict[str, Any]) -> str | None:
        """Return the text of the response to `messages`, "" if it has none; None if the model must be called instead.

        messages: (role, text), the first one of the system. settings: those of this request. The model must be called
        if somebody observes requests, if DSPy has not created the engine yet, and for several completions. Raises
        DSPy's errors.
        """
        return self._first(lambda lm: lm._asked(messages, settings), settings)

    def _first(self, answer: Callable[[LanguageModel], Answer], settings: dict[str, Any]) -> Answer:
        """Return answer(lm) of this model, or of the first fallback for which it does not fail.

        settings: those of this request.
        """
        models = (self, *self.fallbacks)
        with call_of_run() as call:
            for number in range(0 if call is None else call.given_up, len(models)):
                lm = models[number]
                if call is not None:
                    call.asks(lm.settings, (lm.kwargs | settings).get("rollout_id"))
                try:
                    with _accounted(lm.model, call):
                        return answer(lm)
                except dspy.LMError as error:
                    is_last = number + 1 == len(models)
                    # Text that was sent to the host cannot be withdrawn.
                    if call is None or is_last or call.has_streamed or not dspy.is_retryable_lm_error(error):
                        raise
                    call.give_up(lm.model, models[number + 1].model, error.code)
        raise AssertionError("a call has no more models than it has asked")

    def _asked(self, messages: Sequence[tuple[str, str]], settings: dict[str, Any]) -> str | None:
        engine = self._direct_engine() if IS_COMPARED and not self._is_observed() else None
        config = self._config(settings)
        if engine is None or config is None or not all(map(_is_encodable, messages)):
            return None
        (_, system), *rest = messages
        parts = [lm15.Message(role, (lm15.TextPart(text),)) for role, text in rest]
        request = lm15.Request(self.model, tuple(parts), system, config=config)
        with error_boundary(self.model, provider=self.provider_name, unexpected=True):
            response = engine.complete(request)
        if response.finish_reason == "length":
            log.warning("LM response was truncated; increase max_tokens or inspect history.")  # as DSPy does
        return legacy_output(response)["text"] or ""

    def _is_observed(self) -> bool:
        settings = dspy.settings
        return bool(
            self.callbacks
            or settings.callbacks
            or settings.usage_tracker
            or settings.send_stream is not None
            or not settings.disable_history
        )

    def _direct_engine(self) -> Any:
        """Return the engine; None if DSPy creates it with the first call."""
        if not isinstance(self.engine, str):
            return self.engine
        connection = {name: value for name, value in self.kwargs.items() if name in CLIENT_KEYS}
        timeout = connection.pop("timeout", None)
        if not (isinstance(timeout, int | float | None) and all(isinstance(each, str) for each in connection.values())):
            return None
        # DSPy's key. Should it have another one day, no engine is found, and DSPy answers.
        key = (None, self.model, self.model_type, _timeouts(timeout), tuple(sorted(connection.items())))
        return self._engine_store.get(key)

    def _config(self, settings: dict[str, Any]) -> lm15.Config | None:
        """Return the settings of a request as its configuration, or None if DSPy has to handle them."""
        if self.cache or self.num_retries or self.model_type != "chat":
            return None
        given = self.kwargs | settings if settings else self.kwargs
        if given.get("n") not in (None, 1) or given.get("prompt_cache") is not None:
            return None
        try:
            return config_of(given, self.compat)
        except (lm15.LM15Error, TypeError, ValueError):  # which DSPy reports
            return None


@contextmanager
def _accounted(model: str, call: ModelCall | None) -> Iterator[None]:
    """Count a request that no engine gets, because of settings that none can have, and let it fail like any other."""
    try:
        yield
    except (dspy.LMError, TypeError, ValueError) as error:
        if call is None or call.has_begun:
            raise
        call.count_refused(model)
        if isinstance(error, dspy.LMError):
            raise
        raise LMUnsupportedFeatureError(str(error), model=model) from error


_timeouts = lru_cache(maxsize=64)(timeouts_for)


def _is_encodable(message: tuple[str, str]) -> bool:
    try:
        message[1].encode()
    except UnicodeEncodeError:
        return False
    return True
