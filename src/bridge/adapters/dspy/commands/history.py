"""The commands that show the last calls of a session's models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from bridge import errors
from bridge.adapters.dspy.commands import adapter
from bridge.adapters.dspy.history import as_text, history_of
from bridge.adapters.dspy.settings import MOST_CALLS

if TYPE_CHECKING:
    from bridge._dispatch import Context


class HistoryArgs(msgspec.Struct):
    """The args of get_history. limit: how many calls are returned: the newest."""

    limit: Annotated[int, msgspec.Meta(ge=0, le=MOST_CALLS)] = MOST_CALLS
    session_id: str | None = None


@adapter.command("get_history", HistoryArgs, idempotent=True)
def get_history(args: HistoryArgs, context: Context) -> dict[str, Any]:
    """Return the last calls of the session's models, the newest last, if configure_lm has switched this on."""
    return {"history": history_of(context.session).calls(args.limit)}


class InspectArgs(msgspec.Struct):
    """The args of inspect_call. id: of a call, from get_history."""

    id: int
    session_id: str | None = None


@adapter.command("inspect_call", InspectArgs, idempotent=True)
def inspect_call(args: InspectArgs, context: Context) -> dict[str, Any]:
    """Return one call of a model from the session's history, also as a text to read."""
    call = history_of(context.session).find(args.id)
    if call is None:
        raise errors.InvalidArgs(f"args.id: the session's history has no call {errors.shown(args.id)}", path="args.id")
    return {**call, "text": as_text(call)}
