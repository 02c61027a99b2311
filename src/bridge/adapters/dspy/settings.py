"""Configured language models, as data: the settings that configure_lm sets, and the part of them that a store holds."""

from __future__ import annotations

from typing import Literal

import msgspec

from bridge import errors
from bridge.adapters.dspy.format_choice import FormatChoice
from bridge.adapters.dspy.generation import Generation
from bridge.security import redaction
from bridge.security.destinations import Address
from bridge.security.secret_values import secrets_in_url

LONGEST_KEY = 8192  # characters; the usual limit of servers for a header
MOST_ANSWERS = 100_000  # in a session's cache; at some kB each these are hundreds of MB
MOST_CALLS = 1000  # in a session's history; at some kB each these are MB

# The ranges of the settings that a request to a model does not contain.
RANGES: dict[str, tuple[float, float]] = {
    "timeout": (0.001, 86_400),
    "retries": (0, 10),
    "retry_wait": (0, 60),
    "retry_cap": (0, 600),
    "cache": (0, MOST_ANSWERS),
    "history": (0, MOST_CALLS),
}


class LMSettings(Generation, frozen=True):
    """The settings of a language model.

    name: as the host wrote it. model: DSPy's name of it, provider first. key_variable: the environment variable that
    api_key comes from, if the host has named one. timeout: seconds for one answer. answers: those of the provider
    `scripted`, as JSON. retries: how many times a failed request is sent again; retry_wait, retry_cap: the first and
    the longest wait before that, in seconds.
    """

    name: str
    model: str
    api_key: str | None = None
    key_variable: str | None = None
    api_base: str | None = None
    api_version: str | None = None
    extra_headers: dict[str, str] | None = None
    model_type: Literal["chat", "responses"] = "chat"
    timeout: float = 120.0
    answers: str | None = None
    retries: int = 2
    retry_wait: float = 0.5
    retry_cap: float = 10.0

    def __hash__(self) -> int:  # not of the maps; equal settings have equal hashes nevertheless
        return hash((self.model, self.api_key, self.api_base, self.temperature, self.max_tokens, self.answers))

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    @property
    def has_own_key(self) -> bool:
        """Return whether the host has sent the key, which is not the operator's then."""
        return self.api_key is not None and self.key_variable is None

    @property
    def secrets(self) -> list[str]:
        """Return the key, the values of headers, and the user, password and query of the address."""
        found = [] if self.api_key is None else [self.api_key]
        found += (self.extra_headers or {}).values()
        return found if self.api_base is None else [*found, *secrets_in_url(self.api_base)]

    def with_model(self, name: str, model: str) -> LMSettings:
        """Return these settings for another model.

        Of another provider's, only those remain that all providers have: neither the key nor the address, for instance.
        """
        if model.partition("/")[0] == self.provider:
            return msgspec.structs.replace(self, name=name, model=model)
        return LMSettings(
            name,
            model,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            retries=self.retries,
            retry_wait=self.retry_wait,
            retry_cap=self.retry_cap,
        )

    def __repr__(self) -> str:
        return f"LMSettings({self.model!r})"


class StoredSettings(LMSettings, frozen=True):
    """A configured model as a store holds it: LMSettings without secrets, and how sessions use the model (see Model).

    had_secrets: the settings were used with a key of the host or another secret, so they do not work without it.
    """

    had_secrets: bool = False
    cache: int = 0
    history: int = 0
    format: FormatChoice | None = None

    @classmethod
    def of(cls, model: Model) -> StoredSettings:
        """Return what a store may hold of `model`."""
        settings = model.settings
        base = _without_secrets(settings.api_base)
        had_secrets = settings.has_own_key or base != settings.api_base or bool(settings.extra_headers)
        fields = msgspec.structs.asdict(settings) | {"api_key": None, "extra_headers": None, "api_base": base}
        use = {name: getattr(model, name) for name in ("cache", "history", "format")}
        return cls(**fields, **use, had_secrets=had_secrets)

    def restored(self, api_key: str | None) -> Model:
        """Return the model. api_key: the value of `key_variable`. Raises LMNotConfigured if it needs other secrets."""
        if self.had_secrets:
            raise errors.LMNotConfigured(
                f"the session was restored with its model {self.name}, but keys are not stored:"
                " send configure_lm again, with its session_id"
            )
        fields = {name: getattr(self, name) for name in LMSettings.__struct_fields__}
        settings = LMSettings(**{**fields, "api_key": api_key})
        return Model(settings, cache=self.cache, history=self.history, format=self.format)


def header_value(key: str) -> str:
    """Return `key` without surrounding white space. Raises ValueError, without the key, if no HTTP header can hold it.

    Only ASCII is accepted: some of the HTTP clients cannot send the rest of Latin-1.
    """
    key = key.strip()
    if len(key) > LONGEST_KEY:
        raise ValueError(f"it has more than {LONGEST_KEY} characters")
    if not key.isascii() or not key.isprintable():
        raise ValueError("it has a line break, another control character, or a character outside ASCII")
    return key


def _without_secrets(url: str | None) -> str | None:
    """Return `url` without its user and its query, which are used for keys."""
    if url is None:
        return None
    return redaction.redact(str(msgspec.structs.replace(Address.parse(url), user="", query="")))


class Model:
    """A language model that was configured: data only, `models` creates DSPy's model for it.

    cache: how many answers each session caches. history: how many calls of models each session keeps. format: of its
    prompts and replies; None: chat. session_id: the session whose secrets these are; None: everyone's. Its secrets are
    redacted as long as it lives. Raises QuotaExceeded if the worker has too many secrets.
    """

    def __init__(
        self,
        settings: LMSettings,
        *,
        cache: int = 0,
        history: int = 0,
        format: FormatChoice | None = None,
        session_id: str | None = None,
    ) -> None:
        self._secrets = redaction.hold(settings.secrets, session_id)
        self.settings = settings
        self.cache = cache
        self.history = history
        self.format = format
        self.session_id = session_id

    def with_settings(self, settings: LMSettings) -> Model:
        """Return a model of other settings that sessions use like this one."""
        return Model(
            settings,
            cache=self.cache,
            history=self.history,
            format=self.format,
            session_id=self.session_id,
        )
