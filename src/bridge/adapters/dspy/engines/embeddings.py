"""Embeddings of providers, which LiteLLM calls: DSPy's own HTTP client has none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from dspy import lm15
from dspy.clients.engines.litellm_errors import litellm_errors
from dspy.clients.errors import wrap_error

from bridge.adapters.dspy import credentials
from bridge.adapters.dspy.engines.litellm import completed_errors, load_litellm
from bridge.adapters.dspy.engines.retries import Retries, timeout_within
from bridge.adapters.dspy.model_errors import lm_error

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.retrieval.settings import EmbedderSettings
    from bridge.adapters.dspy.settings import LMSettings

log = logging.getLogger("bridge.lm")


class ProviderEmbeddings:
    """Asks a provider for vectors, for one call of a command.

    connection: the provider's address and key. Raises InvalidArgs if a key must not be sent to that address.
    """

    def __init__(self, settings: EmbedderSettings, connection: LMSettings, context: Context) -> None:
        credentials.check_destination(connection, context.shared.get("api_bases", ()))
        self._settings = settings
        self._connection = connection
        self._context = context
        self._retries = Retries(settings.retries)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a vector for each text. Raises LMError, and CallEnded between attempts."""
        context, model = self._context, self._settings.model
        for attempt in count(1):
            context.check()
            context.count("lm_calls")
            try:
                return self._requested(texts)
            except Exception as failure:
                error = _as_lm15(failure)
                context.count("lm_errors")
                log.debug("%s: attempt %d failed: %s", model, attempt, error)
                wait = self._retries.wait(error, attempt, context.remaining)
                if wait is None:
                    provider = self._settings.provider
                    raise lm_error(wrap_error(error, model=model, provider=provider), attempt) from failure
                context.count("lm_retries")
                context.wait(wait)
        raise AssertionError("not reached")

    def _requested(self, texts: Sequence[str]) -> list[list[float]]:
        import litellm

        load_litellm()
        settings, connection = self._settings, self._connection
        with completed_errors(), litellm_errors(model=settings.model, provider=settings.provider):
            response = litellm.embedding(
                settings.model,
                input=list(texts),
                dimensions=settings.dimensions,
                timeout=timeout_within(settings.timeout, self._context.remaining),
                api_base=connection.api_base,
                api_key=connection.api_key,
                max_retries=0,
                num_retries=0,
            )
            tokens = getattr(getattr(response, "usage", None), "prompt_tokens", None)
            if isinstance(tokens, int):  # a provider may send anything
                self._context.count("input_tokens", tokens)
            # The entries may come in another order.
            return [each["embedding"] for each in sorted(response.data, key=lambda each: each.get("index") or 0)]


def _as_lm15(error: Exception) -> lm15.LM15Error:
    if isinstance(error, lm15.LM15Error):
        return error
    # The response has another shape, or LiteLLM has failed.
    return lm15.LM15Error(f"{type(error).__name__}: {error}", code="unexpected")
