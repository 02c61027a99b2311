"""Settings of language models, as data: those that configure_lm sets, and the part of them that a store holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from bridge import errors
from bridge.security import redaction
from bridge.security.destinations import Address
from bridge.security.secret_values import secrets_in_url

LONGEST_KEY = 8192  # characters; the usual limit of servers for a header
MOST_CALLS = 1000  # in a session's history; at some kB each these are MB
MOST_ANSWERS = 100_000  # in a session's cache; at some kB each these are hundreds of MB

# The ranges of the settings of a model and of a run. A provider may allow less.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "max_tokens": (1, 2**31 - 1),
    "timeout": (0.001, 86_400),
    "retries": (0, 10),
    "retry_wait": (0, 60),
    "retry_cap": (0, 600),
    "cache": (0, MOST_ANSWERS),
    "history": (0, MOST_CALLS),
}


def check_ranges(settings: Mapping[str, Any], path: str) -> None:
    """Raise InvalidArgs for a number outside its range, and for NaN. path: of `settings` in the args."""
    for name, (least, most) in RANGES.items():
        value = settings.get(name)
        if value is not None and not least <= value <= most:
            expected = f"a number from {least} to {most}"
            raise errors.InvalidArgs(f"{path}.{name}: expected {expected}", path=f"{path}.{name}", expected=expected)


class LMSettings(msgspec.Struct, frozen=True):
    """The settings of a language model.

    name: as the host wrote it. model: DSPy's name of it, provider first. timeout: seconds for one answer.
    answers: those of the provider `scripted`, as JSON. retries: how many times a failed request is sent again;
    retry_wait, retry_cap: the first and the longest wait before that, in seconds.
    """

    name: str
    model: str
    api_key: str | None = None
    api_base: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float = 120.0
    answers: str | None = None
    retries: int = 2
    retry_wait: float = 0.5
    retry_cap: float = 10.0

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    @property
    def secrets(self) -> list[str]:
        """Return the key, and the user, password and query of the address."""
        key = [] if self.api_key is None else [self.api_key]
        return key if self.api_base is None else [*key, *secrets_in_url(self.api_base)]

    def with_model(self, name: str, model: str) -> LMSettings:
        """Return these settings for another model. Another provider gets neither the key nor the address."""
        other = msgspec.structs.replace(self, name=name, model=model)
        if other.provider == self.provider:
            return other
        defaults = LMSettings(name, model)
        return msgspec.structs.replace(
            other, api_key=None, api_base=None, timeout=defaults.timeout, answers=defaults.answers
        )

    def __repr__(self) -> str:
        return f"LMSettings({self.model!r})"


class StoredSettings(msgspec.Struct, frozen=True):
    """LMSettings without secrets, and the sizes of the cache of answers and of the history.

    had_secrets: the settings were used with a key or another secret, so they do not work without it.
    """

    name: str
    model: str
    api_base: str | None
    temperature: float | None
    max_tokens: int | None
    timeout: float
    answers: str | None
    had_secrets: bool
    cache: int
    retries: int = 2
    retry_wait: float = 0.5
    retry_cap: float = 10.0
    history: int = 0

    @classmethod
    def of(cls, settings: LMSettings, cache: int, history: int = 0) -> StoredSettings:
        """Return what a store may hold of `settings`."""
        base = _without_secrets(settings.api_base)
        had_secrets = settings.api_key is not None or base != settings.api_base
        fields = msgspec.structs.asdict(settings) | {"api_base": base, "had_secrets": had_secrets, "cache": cache}
        fields["history"] = history
        del fields["api_key"]
        return cls(**fields)

    def settings(self) -> LMSettings:
        """Return the settings. Raises LMNotConfigured if they need secrets."""
        if self.had_secrets:
            raise errors.LMNotConfigured(
                f"the session was restored with its model {self.name}, but keys are not stored:"
                " send configure_lm again, with its session_id"
            )
        fields = msgspec.structs.asdict(self)
        del fields["had_secrets"], fields["cache"], fields["history"]
        return LMSettings(**fields)


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

    cache: how many answers each session caches. history: how many calls of models each session keeps. session_id: the
    session whose secrets these are; None: everyone's. Its secrets are redacted as long as it lives. Raises
    QuotaExceeded if the worker has too many secrets.
    """

    def __init__(
        self, settings: LMSettings, cache: int = 0, history: int = 0, *, session_id: str | None = None
    ) -> None:
        self._secrets = redaction.hold(settings.secrets, session_id)
        self.settings = settings
        self.cache = cache
        self.history = history
        self.session_id = session_id
