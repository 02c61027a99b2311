"""The args of the DSPy commands, as hosts send them."""

from __future__ import annotations

from typing import Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.tools import Tool
from bridge.telemetry import keep_secret

PROVIDERS = {"google": "gemini"}  # names that hosts use -> DSPy's
DEFAULT_PROVIDER = "gemini"


class LMSettings(msgspec.Struct, frozen=True):
    """A language model. model: DSPy's full name, provider first. timeout: seconds.

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

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    def with_model(self, model: str) -> LMSettings:
        """The same for another model; another provider does not get this one's key."""
        full = full_model(model, None)
        if full.partition("/")[0] == self.provider:
            return msgspec.structs.replace(self, name=model, model=full)
        return LMSettings(model, full, temperature=self.temperature, max_tokens=self.max_tokens)

    def __repr__(self) -> str:
        return f"LMSettings({self.model!r})"


def full_model(model: str, provider: str | None) -> str:
    """`model` as DSPy wants it: one with a slash as it is, a bare one behind its provider."""
    if "/" in model:
        return model
    provider = (provider or DEFAULT_PROVIDER).lower()
    return f"{PROVIDERS.get(provider, provider)}/{model}"


class ConfigureArgs(msgspec.Struct):
    """model: required but for the providers `offline` and `scripted`. type: as provider.

    timeout: seconds for one answer of the provider. answers (`scripted`): a list of maps of
    output fields, used up in turn, or a map from a part of the prompt to such a map.
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
    session_id: str | None = None

    def settings(self) -> LMSettings:
        """These as settings. Raises InvalidArgs without a model."""
        provider = self.provider or self.type
        model = self.model or {"offline": "reader", "scripted": "answers"}.get(provider or "")
        if not model:
            raise errors.InvalidArgs(
                "args.model: a model is required, as in gemini-2.0-flash or openai/gpt-4o-mini",
                path="args.model",
            )
        if self.api_key:
            keep_secret(self.api_key)
        return LMSettings(
            model,
            full_model(model, provider),
            self.api_key,
            self.api_base,
            self.temperature,
            self.max_tokens,
            self.timeout,
            None if self.answers is None else msgspec.json.encode(self.answers).decode(),
        )


class CreateArgs(msgspec.Struct):
    """id: made up if missing. signature: see signatures.py. program_type: see runtime.py.

    For `react`: tools, by name, of those that the session has registered (default: all of them);
    max_iters: how many it may call (default 20, at most 100).
    """

    signature: msgspec.Raw
    id: str | None = None
    program_type: str = "predict"
    tools: list[str] | None = None
    max_iters: int | None = None
    session_id: str | None = None


class CreateGeminiArgs(CreateArgs):
    """model: as in configure_lm; the program runs on it whatever its session's model is.

    Some hosts send no signature here: then it is question -> answer.
    """

    signature: msgspec.Raw = msgspec.Raw()
    model: str | None = None


class RegisterToolsArgs(msgspec.Struct):
    """tools: the session's from now on, in place of earlier ones; made programs keep theirs."""

    tools: list[Tool]
    session_id: str | None = None


class ProgramArgs(msgspec.Struct):
    """program_id: required; a missing one is answered in the words that hosts look for."""

    program_id: str | None = None
    session_id: str | None = None


# Empty, an empty map and null, in each format.
_NOTHING = {b"", b"{}", b"null", b"\x80", b"\xc0", b"t\0\0\0\0", b"w\x03nil"}


class ProgramData(msgspec.Struct):
    """What a host that keeps programs itself sends with each execute."""

    signature: msgspec.Raw = msgspec.Raw()
    signature_def: msgspec.Raw = msgspec.Raw()
    program_type: str | None = None

    def definition(self) -> msgspec.Raw:
        """The signature to build from; empty where there is none."""
        for raw in (self.signature, self.signature_def):
            if bytes(raw).strip() not in _NOTHING:
                return raw
        return msgspec.Raw()


class RunOptions(msgspec.Struct):
    """What one run changes of its language model's settings."""

    temperature: float | None = None
    max_tokens: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are set."""
        every = msgspec.structs.asdict(self)
        return {name: value for name, value in every.items() if value is not None}


class ExecuteArgs(msgspec.Struct):
    """inputs: exactly the signature's."""

    program_id: str | None = None
    inputs: dict[str, Any] = {}
    options: RunOptions | None = None
    program_data: ProgramData | None = None
    session_id: str | None = None
