"""The command that configures an embedder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.commands.models import KeyVariable, checked_base, checked_key
from bridge.adapters.dspy.credentials import check_destination
from bridge.adapters.dspy.providers import LOCAL, full_model
from bridge.adapters.dspy.retrieval.settings import HOST, MOST_AT_ONCE, OFFLINE, Embedder, EmbedderSettings
from bridge.adapters.dspy.settings import LMSettings

if TYPE_CHECKING:
    from bridge._dispatch import Context


class ConfigureEmbedderArgs(msgspec.Struct):
    """The args of configure_embedder.

    model: as in openai/text-embedding-3-small, host/NAME or offline. name: by which commands choose it; missing: it is
    the default. dimensions: of the vectors, for models that let it be chosen. batch_size: texts in one request.
    timeout: seconds for one request. retries: how many times a failed request is sent again.
    """

    model: str
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200, pattern="^[^/]*$")] | None = None
    provider: str | None = None
    api_key: str | KeyVariable | None = None
    api_base: str | None = None
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=65_536)] | None = None
    batch_size: Annotated[int, msgspec.Meta(ge=1, le=MOST_AT_ONCE)] = 200
    timeout: Annotated[float, msgspec.Meta(ge=0.001, le=86_400)] = 120.0
    retries: Annotated[int, msgspec.Meta(ge=0, le=10)] = 2
    session_id: str | None = None

    def __repr__(self) -> str:
        return f"ConfigureEmbedderArgs({self.model!r})"


@adapter.command("configure_embedder", ConfigureEmbedderArgs, lane="everyone", idempotent=True)
def configure_embedder(args: ConfigureEmbedderArgs, context: Context) -> dict[str, Any]:
    """Set an embedder of the session; without a session, of all sessions that have none of that name."""
    if args.name == OFFLINE:
        raise errors.InvalidArgs(f"args.name: {OFFLINE} is the built-in embedder", path="args.name")
    embedder = _embedder(args, context)
    if context.session_id is None:
        embedders: dict[str, Embedder] = context.shared.get("embedders", {})
        context.shared["embedders"] = {**embedders, args.name or "": embedder}
    else:
        context.session.state.retrieval.set_embedder(args.name or "", embedder)
    return {"status": "configured", "embedder": args.name or "default", "model": embedder.settings.model}


def _embedder(args: ConfigureEmbedderArgs, context: Context) -> Embedder:
    if (args.provider or args.model.partition("/")[0]) in (OFFLINE, HOST):
        return _local(args)
    model = full_model(args.model, args.provider)
    if model.partition("/")[0] in LOCAL:
        raise errors.InvalidArgs(f"args.model: {model} makes no vectors", path="args.model")
    connection = LMSettings(
        args.model,
        model,
        api_key=checked_key(args.api_key, context.shared),
        key_variable=args.api_key.env if isinstance(args.api_key, KeyVariable) else None,
        api_base=checked_base(args.api_base),
        timeout=args.timeout,
    )
    check_destination(connection, context.shared.get("api_bases", ()))
    has_secrets = bool(connection.secrets)
    settings = EmbedderSettings(
        model,
        None if has_secrets else connection.api_base,
        args.dimensions,
        args.batch_size,
        args.timeout,
        args.retries,
        needs_secrets=has_secrets,
    )
    return Embedder(settings, connection, context.session_id)


def _local(args: ConfigureEmbedderArgs) -> Embedder:
    """Return an embedder that is called without HTTP."""
    for name in ("api_key", "api_base", "dimensions"):
        if getattr(args, name) is not None:
            raise errors.InvalidArgs(f"args.{name}: only for embedders of providers", path=f"args.{name}")
    model = args.model
    if args.provider is not None and args.provider != model and not model.startswith(f"{args.provider}/"):
        model = f"{args.provider}/{model}"
    if model != OFFLINE and not (model.startswith(f"{HOST}/") and len(model) > len(HOST) + 1):
        raise errors.InvalidArgs(f"args.model: expected {OFFLINE} or {HOST}/NAME", path="args.model")
    return Embedder(EmbedderSettings(model, batch_size=args.batch_size), None)
