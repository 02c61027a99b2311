"""The command that configures a language model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from bridge import errors
from bridge.adapters.dspy.chosen_model import is_name
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.credentials import environment_key
from bridge.adapters.dspy.format_choice import FormatArg, read_choice
from bridge.adapters.dspy.generation import Generation, check_ranges
from bridge.adapters.dspy.providers import HOST, LOCAL, full_model
from bridge.adapters.dspy.settings import RANGES, LMSettings, Model, header_value
from bridge.security.destinations import Address

if TYPE_CHECKING:
    from bridge._dispatch import Context

MOST_HEADERS = 64
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}")  # RFC 9110
# Headers that HTTP clients write themselves, and those that concern a connection and not a request.
_RESERVED_HEADERS = re.compile(
    r"host|content-(?:length|type|encoding)|accept-encoding|expect"
    r"|connection|keep-alive|te|trailer|transfer-encoding|upgrade|proxy-.*",
    re.IGNORECASE,
)


class KeyVariable(msgspec.Struct, forbid_unknown_fields=True):
    """A key that the worker takes from the environment variable `env`, which the operator must have allowed."""

    env: str


class ConfigureArgs(Generation, frozen=True):
    """The args of configure_lm.

    name: of the model, for programs and calls that choose it; without one it is the default. model: required, except
    for local providers. type: another name of provider. model_type: which of OpenAI's interfaces is called. timeout:
    seconds for one answer. answers (`scripted`): a list of maps of output fields, used in order, or a map from a part
    of the prompt to such a map. cache: how many answers of this model each session caches. history: how many calls of
    it each session remembers. retries: how many times a failed request is sent again; retry_wait, retry_cap: the first
    and the longest wait before that, in seconds. adapter, fallback: the format of prompts and replies, and the format
    of a second attempt after a reply that cannot be read.
    """

    name: str | None = None
    model: str | None = None
    provider: str | None = None
    type: str | None = None
    api_key: str | KeyVariable | None = None
    api_base: str | None = None
    api_version: str | None = None
    extra_headers: dict[str, str] | None = None
    model_type: Literal["chat", "responses"] = "chat"
    timeout: float = 120.0
    answers: list[Any] | dict[str, Any] | None = None
    cache: int = 0
    history: int = 0
    retries: int = 2
    retry_wait: float = 0.5
    retry_cap: float = 10.0
    adapter: FormatArg | None = None
    fallback: str | None = None
    session_id: str | None = None

    def settings(self, shared: dict[str, Any]) -> LMSettings:
        """Return these as settings. shared: what all sessions share.

        Raises InvalidArgs without a model, for values out of range and for settings that the provider lacks, and
        NotAllowed for a key that the operator has not allowed.
        """
        self.check("args")
        check_ranges(msgspec.structs.asdict(self), RANGES, "args")
        provider = self.provider or self.type
        model = self.model or (LOCAL[provider].default_model if provider in LOCAL else None)
        if not model:
            raise errors.InvalidArgs(
                "args.model: a model is required, as in gemini-2.0-flash or openai/gpt-4o-mini",
                path="args.model",
            )
        full_name = full_model(model, provider)
        self._check_provider(full_name.partition("/")[0])
        variable = self.api_key.env if isinstance(self.api_key, KeyVariable) else None
        return LMSettings(
            model,
            full_name,
            api_key=checked_key(self.api_key, shared),
            key_variable=variable,
            api_base=checked_base(self.api_base),
            api_version=self.api_version,
            extra_headers=self._headers(),
            model_type=self.model_type,
            timeout=self.timeout,
            answers=self._answers(full_name),
            retries=self.retries,
            retry_wait=self.retry_wait,
            retry_cap=self.retry_cap,
            **self.given(),
        )

    def __repr__(self) -> str:
        return f"ConfigureArgs({self.model!r})"

    def _check_provider(self, provider: str) -> None:
        """Raise InvalidArgs for a setting that has no effect with this provider."""
        refused: tuple[str, ...] = ("extra_headers",) if provider in LOCAL else ()
        if provider == HOST:
            refused += ("api_key", "api_base")  # the host has its own
        if not provider.startswith("azure"):
            refused += ("api_version",)
        for name in refused:
            if getattr(self, name) is not None:
                raise errors.InvalidArgs(
                    f"args.{name}: the provider {provider} has no such setting", path=f"args.{name}"
                )

    def _answers(self, model: str) -> str | None:
        if self.answers is None:
            return None
        if model.partition("/")[0] != "scripted":
            raise errors.InvalidArgs("args.answers: only for the provider scripted", path="args.answers")
        from bridge.adapters.dspy.values.text_form import without_text_form

        unreadable = without_text_form(self.answers, "args.answers")
        if unreadable is not None:
            path, kind = unreadable
            raise errors.InvalidArgs(f"{path}: {kind} has no text form for a reply", path=path)
        try:
            return msgspec.json.encode(self.answers).decode()
        except TypeError as error:  # of a map with a key that JSON lacks
            raise errors.InvalidArgs(f"args.answers: {error}", path="args.answers") from None

    def _headers(self) -> dict[str, str] | None:
        if len(self.extra_headers or ()) > MOST_HEADERS:
            raise errors.InvalidArgs(
                f"args.extra_headers: at most {MOST_HEADERS} headers are allowed", path="args.extra_headers"
            )
        headers: dict[str, str] = {}
        for name, value in (self.extra_headers or {}).items():
            if not _HEADER.fullmatch(name) or _RESERVED_HEADERS.fullmatch(name):
                raise errors.InvalidArgs(
                    f"args.extra_headers: {errors.shown(name)} is not a header that can be set",
                    path="args.extra_headers",
                )
            try:
                headers[name] = header_value(value)
            except ValueError as error:
                path = f"args.extra_headers.{name}"
                raise errors.InvalidArgs(f"{path}: this cannot be sent as a header: {error}", path=path) from None
        return headers or None


def checked_key(api_key: str | KeyVariable | None, shared: dict[str, Any]) -> str | None:
    """Return a key of the host or of the environment, None if there is none. shared: what all sessions share.

    Raises InvalidArgs for a key that cannot be sent, and NotAllowed for one that the operator has not allowed.
    """
    if isinstance(api_key, KeyVariable):
        return environment_key(api_key.env, shared)
    try:
        return header_value(api_key or "") or None
    except ValueError as error:
        raise errors.InvalidArgs(f"args.api_key: this cannot be sent as a key: {error}", path="args.api_key") from None


def checked_base(api_base: str | None) -> str | None:
    """Return the address of a provider. Raises InvalidArgs."""
    if api_base is None:
        return None
    try:
        return str(Address.parse(api_base))
    except ValueError as error:
        raise errors.InvalidArgs(f"args.api_base: {error}", path="args.api_base") from None


@adapter.command("configure_lm", ConfigureArgs, lane="everyone", idempotent=True)
def configure_lm(args: ConfigureArgs, context: Context) -> dict[str, Any]:
    """Set a language model of the session; without a session, one of all sessions that have none of its name."""
    from bridge.adapters.dspy import models

    return configure(args, context, models.connect)


def configure(
    args: ConfigureArgs, context: Context, connect: Callable[[Model, dict[str, Any]], object]
) -> dict[str, Any]:
    """Set the model for `configure_lm`. connect(model, shared): raises the error of a model that cannot be used."""
    if args.name is not None and not is_name(args.name):
        raise errors.InvalidArgs(
            "args.name: a name has 1 to 128 letters, digits and characters of _ - . :", path="args.name"
        )
    settings = args.settings(context.shared)
    model = Model(
        settings,
        cache=args.cache,
        history=args.history,
        format=read_choice(args.adapter, "args.adapter", args.fallback),
        session_id=context.session_id,
    )
    connect(model, context.shared)
    name = args.name or ""
    if context.session_id is None:
        context.shared["models"] = {**context.shared.get("models", {}), name: model}
    else:
        context.session.state.set_model(model, name)
    result = {
        "status": "configured",
        "model": settings.name,
        "provider": settings.provider,
        "temperature": settings.temperature,
    }
    return {**result, "name": name} if name else result
