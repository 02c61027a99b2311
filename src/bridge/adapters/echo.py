"""The smallest adapter: what a pipe and a dispatcher cost, with nothing behind them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.adapter import Adapter

if TYPE_CHECKING:
    from bridge._dispatch import Context


class SleepArgs(msgspec.Struct):
    """seconds: how long the call takes, on a thread of its own."""

    seconds: float = 0.0


adapter = Adapter("echo")


@adapter.command("echo", msgspec.Raw, lane="inline", idempotent=True)
def echo(args: msgspec.Raw, context: Context) -> msgspec.Raw:
    """The args, byte for byte."""
    context.pass_buffers()
    return args


@adapter.command("echo_decoded", dict[str, Any], lane="inline", idempotent=True)
def echo_decoded(args: dict[str, Any], context: Context) -> dict[str, Any]:
    """The args, decoded and encoded."""
    return args


@adapter.command("sleep", SleepArgs, idempotent=True)
def sleep(args: SleepArgs, context: Context) -> dict[str, float]:
    """Answers after a while."""
    if args.seconds:  # even none costs the system's timer slack
        time.sleep(args.seconds)
    return {"slept": args.seconds}
