"""Settings of embedders, as data: what makes vectors of texts, and the part of it that a store holds."""

from __future__ import annotations

import msgspec

from bridge import errors
from bridge.adapters.dspy.settings import LMSettings
from bridge.security import redaction

OFFLINE = "offline"  # the built-in embedder
HOST = "host"  # the provider of embedders of the host
MOST_AT_ONCE = 2048  # texts in one request; OpenAI's limit


class EmbedderSettings(msgspec.Struct, frozen=True):
    """The settings of an embedder, without secrets.

    model: its provider first, as in openai/text-embedding-3-small, host/NAME or offline. dimensions: of the vectors,
    for models that let it be chosen. batch_size: texts in one request. timeout: seconds for one request. retries: how
    many times a failed request is sent again. needs_secrets: whether it was configured with a key, or an address that
    has one.
    """

    model: str
    api_base: str | None = None
    dimensions: int | None = None
    batch_size: int = 200
    timeout: float = 120.0
    retries: int = 2
    needs_secrets: bool = False

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]


class Embedder:
    """An embedder that was configured: data only. Its secrets are redacted as long as it lives.

    connection: the address and the key, None for one that a store has returned without its secrets. session_id: the
    session whose secrets these are; None: everyone's. Raises QuotaExceeded if the worker has too many secrets.
    """

    def __init__(
        self, settings: EmbedderSettings, connection: LMSettings | None, session_id: str | None = None
    ) -> None:
        self._secrets = redaction.hold([] if connection is None else connection.secrets, session_id)
        self.settings = settings
        self._connection = connection

    @property
    def connection(self) -> LMSettings:
        """Return the address and the key. Raises LMNotConfigured if they were not stored."""
        if self._connection is not None:
            return self._connection
        if self.settings.needs_secrets:
            raise errors.LMNotConfigured(
                f"the session was restored with its embedder {self.settings.model}, but keys are not stored:"
                " send configure_embedder again, with its session_id"
            )
        return LMSettings(self.settings.model, self.settings.model, api_base=self.settings.api_base)
