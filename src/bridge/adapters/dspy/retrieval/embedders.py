"""Makes vectors of texts: with the built-in embedder, one of the host, or a model of a provider."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bridge import errors
from bridge.adapters.dspy.retrieval.settings import HOST, OFFLINE, Embedder, EmbedderSettings
from bridge.adapters.dspy.retrieval.vectors import matrix_of
from bridge.telemetry.activity import activity

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.adapters.dspy.state import State

Embed = Callable[[Sequence[str]], Any]


def embedder_for(name: str | None, context: Context, path: str = "args.embedder") -> Embed:
    """Return the function that makes vectors of texts, for as long as the call of `context` lasts.

    It returns a row of 32-bit floats for each text, and raises LMError, what the host has raised, and CallEnded.

    name: of an embedder that was configured, "offline", or host/NAME; None: the one that was configured without a name,
    or else offline. path: of the name, for errors. Raises InvalidArgs for an unknown name, and LMNotConfigured for one
    whose key is missing.
    """
    embedder = _configured(name, context, path)
    settings = embedder.settings
    make = _MAKERS.get(settings.provider, _provided)(embedder, context)

    def embed(texts: Sequence[str]) -> Any:
        batches = []
        for first in range(0, len(texts), settings.batch_size):
            context.check()
            batch = list(texts[first : first + settings.batch_size])
            with activity("stage", "embeddings", model=settings.model):
                context.count("embedded_texts", len(batch))
                batches.append(_checked(make(batch), len(batch), settings.model))
        if len({vectors.shape[1] for vectors in batches}) > 1:
            raise errors.LMError(f"{settings.model} has returned vectors of different lengths")
        return batches[0] if len(batches) == 1 else np.concatenate(batches)

    return embed


def _configured(name: str | None, context: Context, path: str) -> Embedder:
    name = name or ""
    if name == OFFLINE or name.startswith(f"{HOST}/"):
        return Embedder(EmbedderSettings(name), None)
    state: State = context.session.state
    inherited: State | None = context.session.inherited
    shared: dict[str, Embedder] = context.shared.get("embedders", {})
    found = state.retrieval.embedder(name) or shared.get(name)
    if found is None and inherited is not None:
        found = inherited.retrieval.embedder(name)
    if found is None and name:
        raise errors.InvalidArgs(
            f"{path}: no embedder {name[:100]!r} is configured; {OFFLINE} and {HOST}/NAME need no configuration",
            path=path,
        )
    return found or Embedder(EmbedderSettings(OFFLINE), None)


def _checked(vectors: Any, count: int, model: str) -> Any:
    """Return what an embedder has returned for `count` texts as a matrix. Raises LMError if it is none."""
    try:
        matrix = matrix_of(vectors, "vectors")
        if len(matrix) == count:
            return matrix
        why = f"{len(matrix)} vectors for {count} texts"
    except errors.InvalidArgs as error:
        why = error.message
    raise errors.LMError(f"{model} has not returned a vector for each text: {why}", lm_code="invalid_vectors")


def _offline(embedder: Embedder, context: Context) -> Embed:
    from bridge.adapters.offline.embedding import embed

    return embed


def _of_host(embedder: Embedder, context: Context) -> Embed:
    name = embedder.settings.model.partition("/")[2]

    def embed(texts: Sequence[str]) -> Any:
        args = {"name": name, "texts": texts, "session_id": context.session.id}
        reply = context.call_host("call_embedder", args)
        return reply["vectors"] if isinstance(reply, dict) and reply.keys() == {"vectors"} else reply

    return embed


def _provided(embedder: Embedder, context: Context) -> Embed:
    from bridge.adapters.dspy.engines.embeddings import ProviderEmbeddings  # imports DSPy

    return ProviderEmbeddings(embedder.settings, embedder.connection, context).embed


_MAKERS = {OFFLINE: _offline, HOST: _of_host}
