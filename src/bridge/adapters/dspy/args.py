"""The args of the DSPy commands, as hosts send them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec

from bridge import errors
from bridge.adapter import Ignored
from bridge.adapters.dspy.prompt_values import without_text_form
from bridge.adapters.dspy.providers import GEMINI, full_model, header_value
from bridge.adapters.dspy.tools import ToolDefinition
from bridge.security.destinations import Address
from bridge.security.redaction import redact
from bridge.security.secret_values import secrets_in_url
from bridge.wire.codec import Format

MOST_ITERATIONS = 100  # calls of tools in one run
MOST_LISTED = 1_000_000
MOST_ANSWERS = 100_000  # in a session's cache; at some kB each these are hundreds of MB

# Of settings of a model and of a run; what a provider allows may be less.
RANGES: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "max_tokens": (1, 2**31 - 1),
    "timeout": (0.001, 86_400),
    "retries": (0, 10),
    "retry_wait": (0, 60),
    "retry_cap": (0, 600),
    "cache": (0, MOST_ANSWERS),
}


def check_ranges(settings: Mapping[str, Any], path: str) -> None:
    """Raise InvalidArgs for a number that is out of its range, or none at all (NaN)."""
    for name, (least, most) in RANGES.items():
        value = settings.get(name)
        if value is not None and not least <= value <= most:
            expected = f"a number from {least} to {most}"
            raise errors.InvalidArgs(f"{path}.{name}: expected {expected}", path=f"{path}.{name}", expected=expected)


class LMSettings(msgspec.Struct, frozen=True):
    """A language model. model: DSPy's full name, provider first. timeout: seconds. retries, and the
    first and the longest wait before one in seconds: see retries.py.

    answers: of the provider `scripted`, as JSON.
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

    def with_model(self, model: str) -> LMSettings:
        """Return the same settings for another model; another provider does not get this one's
        key."""
        full = full_model(model, default=GEMINI)
        if full.partition("/")[0] == self.provider:
            return msgspec.structs.replace(self, name=model, model=full)
        return LMSettings(
            model,
            full,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            retries=self.retries,
            retry_wait=self.retry_wait,
            retry_cap=self.retry_cap,
        )

    def __repr__(self) -> str:
        return f"LMSettings({self.model!r})"


class StoredSettings(msgspec.Struct, frozen=True):
    """LMSettings without secrets, and how many answers are kept. had_secrets: they do not work
    without them."""

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

    @classmethod
    def of(cls, settings: LMSettings, cache: int) -> StoredSettings:
        base = _without_secrets(settings.api_base)
        return cls(
            settings.name,
            settings.model,
            base,
            settings.temperature,
            settings.max_tokens,
            settings.timeout,
            settings.answers,
            settings.api_key is not None or base != settings.api_base,
            cache,
            settings.retries,
            settings.retry_wait,
            settings.retry_cap,
        )

    def settings(self) -> LMSettings:
        """Raises LMNotConfigured where secrets are missing."""
        if self.had_secrets:
            raise errors.LMNotConfigured(
                f"the session came back with its model {self.name}, but keys are not stored:"
                " send configure_lm again, with its session_id"
            )
        return LMSettings(
            self.name,
            self.model,
            api_base=self.api_base,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            timeout=self.timeout,
            answers=self.answers,
            retries=self.retries,
            retry_wait=self.retry_wait,
            retry_cap=self.retry_cap,
        )


def _without_secrets(url: str | None) -> str | None:
    """Return `url` without what stands before an @, or behind a ?: both are used for keys."""
    if url is None:
        return None
    return redact(str(msgspec.structs.replace(Address.parse(url), user="", query="")))


class ConfigureArgs(msgspec.Struct):
    """model: required but for the providers `offline` and `scripted`. type: as provider.

    timeout: seconds for one answer of the provider. answers (`scripted`): a list of maps of
    output fields, used up in turn, or a map from a part of the prompt to such a map.
    cache: how many answers each session keeps of this model. retries: how often a request that
    failed is sent again; retry_wait, retry_cap: the first and the longest wait before, in seconds.
    """

    model: str | None = None
    provider: str | None = None
    type: str | None = None
    api_key: str | None = None
    api_base: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float = 120.0
    answers: list[Any] | dict[str, Any] | None = None
    cache: int = 0
    retries: int = 2
    retry_wait: float = 0.5
    retry_cap: float = 10.0
    session_id: str | None = None

    def settings(self) -> LMSettings:
        """Return these as settings. Raises InvalidArgs without a model, and for numbers out of
        range."""
        check_ranges(msgspec.structs.asdict(self), "args")
        provider = self.provider or self.type
        model = self.model or {"offline": "reader", "scripted": "answers"}.get(provider or "")
        if not model:
            raise errors.InvalidArgs(
                "args.model: a model is required, as in gemini-2.0-flash or openai/gpt-4o-mini",
                path="args.model",
            )
        return LMSettings(
            model,
            full_model(model, provider),
            self._key(),
            self._base(),
            self.temperature,
            self.max_tokens,
            self.timeout,
            self._answers(full_model(model, provider)),
            self.retries,
            self.retry_wait,
            self.retry_cap,
        )

    def __repr__(self) -> str:
        return f"ConfigureArgs({self.model!r})"

    def _answers(self, model: str) -> str | None:
        if self.answers is None:
            return None
        if model.partition("/")[0] != "scripted":
            raise errors.InvalidArgs("args.answers: only for the provider scripted", path="args.answers")
        unreadable = without_text_form(self.answers, "args.answers")
        if unreadable is not None:
            path, kind = unreadable
            raise errors.InvalidArgs(f"{path}: {kind} has no text form for a reply", path=path)
        return msgspec.json.encode(self.answers).decode()

    def _key(self) -> str | None:
        try:
            return header_value(self.api_key or "") or None
        except ValueError as error:
            raise errors.InvalidArgs(
                f"args.api_key: this cannot be sent as a key: {error}", path="args.api_key"
            ) from None

    def _base(self) -> str | None:
        if self.api_base is None:
            return None
        try:
            return str(Address.parse(self.api_base))
        except ValueError as error:
            raise errors.InvalidArgs(f"args.api_base: {error}", path="args.api_base") from None


class CreateArgs(msgspec.Struct):
    """id: made up if missing. signature: see signatures.py. program_type: see run.py.

    For `react`: tools, by name, of those registered in the session or the default session (default:
    all of them);
    max_iters: how many it may call (default 20, at most 100).

    if_exists: what happens where the session has a program of that id: "error"; "keep" it as it is;
    "replace" it.
    """

    signature: msgspec.Raw
    id: str | None = None
    program_type: str = "predict"
    tools: list[str] | None = None
    max_iters: Annotated[int, msgspec.Meta(ge=1, le=MOST_ITERATIONS)] | None = None
    if_exists: Literal["error", "keep", "replace"] = "error"
    session_id: str | None = None
    modules: Ignored = None  # of hosts that send their own program's configuration
    pool_name: Ignored = None


class CreateGeminiArgs(CreateArgs):
    """model: as in configure_lm; the program runs on it whatever its session's model is.

    Some hosts send no signature here: then it is question -> answer.
    """

    signature: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    model: str | None = None


class RegisterToolsArgs(msgspec.Struct):
    """tools: added to those of the session, in place of earlier ones of the same names; programs
    that are made keep theirs. replace: the session has no others from now on."""

    tools: list[ToolDefinition]
    replace: bool = False
    session_id: str | None = None


class ListProgramsArgs(msgspec.Struct):
    """limit: how many are listed, the oldest first."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=MOST_LISTED)] = MOST_LISTED
    session_id: str | None = None


class ProgramArgs(msgspec.Struct):
    """program_id: required; a missing one is answered in the words that hosts look for."""

    program_id: str | None = None
    session_id: str | None = None


class ProgramData(msgspec.Struct):
    """What a host that keeps programs itself sends with each execute, its own keys among it."""

    signature: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    signature_def: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)
    program_type: str | None = None

    def definition(self, format: Format) -> tuple[str, msgspec.Raw]:
        """Return the name and the value, encoded in `format`, of the signature to build from; both are
        empty if there is none."""
        for name in ("signature", "signature_def"):
            raw: msgspec.Raw = getattr(self, name)
            if not format.is_empty(raw):
                return name, raw
        return "", msgspec.Raw()


class RunOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What one run changes of its language model's settings."""

    temperature: float | None = None
    max_tokens: int | None = None
    pool_name: Ignored = None  # of hosts that send the options of their pool, too
    session_id: Ignored = None
    timeout: Ignored = None
    pool_timeout: Ignored = None

    def given(self) -> dict[str, Any]:
        """Return the options that are set. Raises InvalidArgs for numbers out of range."""
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        check_ranges(settings, "args.options")
        return {name: value for name, value in settings.items() if value is not None}


class ExecuteArgs(msgspec.Struct):
    """inputs: exactly the signature's."""

    program_id: str | None = None
    inputs: dict[str, Any] = {}
    options: RunOptions | None = None
    program_data: ProgramData | None = None
    session_id: str | None = None
