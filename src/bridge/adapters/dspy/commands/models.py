"""The command that configures a language model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.providers import LOCAL, full_model
from bridge.adapters.dspy.settings import LMSettings, Model, check_ranges, header_value
from bridge.security.destinations import Address

if TYPE_CHECKING:
    from bridge._dispatch import Context


class ConfigureArgs(msgspec.Struct):
    """The args of configure_lm.

    model: required, except for local providers. type: another name of provider. timeout: seconds for one answer.
    answers (`scripted`): a list of maps of output fields, used in order, or a map from a part of the prompt to such a
    map. cache: how many answers of this model each session caches. history: how many calls of models each session keeps
    for get_history. retries: how many times a failed request is sent again; retry_wait, retry_cap: the first and the
    longest wait before that, in seconds.
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
    history: int = 0
    retries: int = 2
    retry_wait: float = 0.5
    retry_cap: float = 10.0
    session_id: str | None = None

    def settings(self) -> LMSettings:
        """Return these as settings. Raises InvalidArgs without a model, and for numbers out of range."""
        check_ranges(msgspec.structs.asdict(self), "args")
        provider = self.provider or self.type
        model = self.model or (LOCAL[provider].default_model if provider in LOCAL else None)
        if not model:
            raise errors.InvalidArgs(
                "args.model: a model is required, as in gemini-2.0-flash or openai/gpt-4o-mini",
                path="args.model",
            )
        full_name = full_model(model, provider)
        return LMSettings(
            model,
            full_name,
            self._key(),
            self._base(),
            self.temperature,
            self.max_tokens,
            self.timeout,
            self._answers(full_name),
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
        from bridge.adapters.dspy.values.text_form import without_text_form

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


@adapter.command("configure_lm", ConfigureArgs, lane="everyone", idempotent=True)
def configure_lm(args: ConfigureArgs, context: Context) -> dict[str, Any]:
    """Set the session's language model; without a session, the model of all sessions that have none."""
    from bridge.adapters.dspy import models

    return configure(args, context, models.connect)


def configure(
    args: ConfigureArgs, context: Context, connect: Callable[[Model, dict[str, Any]], object]
) -> dict[str, Any]:
    """Set the model for `configure_lm`. connect(model, shared): raises the error of a model that cannot be used."""
    settings = args.settings()
    model = Model(settings, args.cache, args.history, session_id=context.session_id)
    connect(model, context.shared)
    if context.session_id is None:
        context.shared["model"] = model
    else:
        context.session.state.set_model(model)
    return {
        "status": "configured",
        "model": settings.name,
        "provider": settings.provider,
        "temperature": settings.temperature,
    }
