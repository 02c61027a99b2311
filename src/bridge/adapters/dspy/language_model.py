"""DSPy's language model, with a direct way from a prompt to its engine.

For each request DSPy checks and converts the messages, selects the engine again and estimates a price, which takes more
time than everything else in a call. Messages of plain text with the usual settings need none of that.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import dspy
from dspy import lm15
from dspy.clients.backend_selection import CLIENT_KEYS
from dspy.clients.call_result import legacy_output
from dspy.clients.capabilities import Capabilities, capabilities
from dspy.clients.engines.lm15_engine import timeouts_for
from dspy.clients.errors import error_boundary

log = logging.getLogger("dspy.clients.lm")

# Whether the tests have compared this version of DSPy with what the adapter does in its place. If not, DSPy does it.
IS_COMPARED = dspy.__version__.startswith("3.4.")


class LanguageModel(dspy.LM):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.LM` that can also be asked for a text, with the same effect as calling it.

    provider_name: DSPy's name of the provider, for errors.
    """

    provider_name: str | None = None

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
        if somebody observes requests, if DSPy has not created the engine yet, and for settings other than the
        temperature and the number of tokens. Raises DSPy's errors.
        """
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
        """Return the settings of a request as its configuration, or None if that takes more than numbers."""
        if self.cache or self.num_retries or self.model_type != "chat":
            return None
        given = {name: value for name, value in self.kwargs.items() if name not in CLIENT_KEYS} | settings
        temperature = given.pop("temperature", None)
        max_tokens = given.pop("max_tokens" if "max_tokens" in given else "max_completion_tokens", None)
        if any(value is not None for value in given.values()):
            return None
        try:
            return _config(temperature, max_tokens)
        except (TypeError, ValueError):  # which DSPy reports
            return None


_timeouts = lru_cache(maxsize=64)(timeouts_for)


@lru_cache(maxsize=1024, typed=True)
def _config(temperature: float | None, max_tokens: int | None) -> lm15.Config:
    return lm15.Config(temperature=temperature, max_tokens=max_tokens)


def _is_encodable(message: tuple[str, str]) -> bool:
    try:
        message[1].encode()
    except UnicodeEncodeError:
        return False
    return True
