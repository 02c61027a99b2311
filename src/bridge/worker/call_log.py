"""The log line of each call, at the level DEBUG."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bridge import _dispatch
from bridge.telemetry import logs

if TYPE_CHECKING:
    from bridge._dispatch import Context
    from bridge.wire.messages import Failure

LONGEST_ERROR = 300  # characters


def follow_level() -> None:
    """Log each call from now on if the level is DEBUG, or no call. At other levels calls take no longer."""
    if "logging" not in sys.modules:
        return  # this function is called again when the logs are set up
    import logging

    enabled = logging.getLogger("bridge.worker").isEnabledFor(logging.DEBUG)
    _dispatch.log_calls(_log if enabled else None)


def _log(context: Context, took_ns: int, failure: Failure | None) -> None:
    with logs.logging_call(context):
        logs.debug(
            "%s %r in session %r: %s in %.3f ms",
            context.command.name,
            logs.shown(context.id),
            None if context.session is None else context.session.id,
            "ok" if failure is None else f"{failure.code}: {failure.error[:LONGEST_ERROR]}",
            took_ns / 1e6,
        )
