"""The smallest adapter, for tests and benchmarks: its commands return their args, or sleep."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from bridge.adapter import Adapter

if TYPE_CHECKING:
    from bridge._dispatch import Context


class SleepArgs(msgspec.Struct):
    """The args of sleep. seconds: how long the call takes."""

    seconds: float = 0.0


adapter = Adapter("echo")


@adapter.command("echo", msgspec.Raw, lane="inline", idempotent=True)
def echo(args: msgspec.Raw, context: Context) -> msgspec.Raw:
    """Return the args, byte for byte."""
    context.pass_buffers()
    return args


@adapter.command("echo_decoded", dict[str, Any], lane="inline", idempotent=True)
def echo_decoded(args: dict[str, Any], context: Context) -> dict[str, Any]:
    """Return the args, decoded and encoded."""
    return args


@adapter.command("sleep", SleepArgs, idempotent=True)
def sleep(args: SleepArgs, context: Context) -> dict[str, float]:
    """Sleep, and return for how many seconds."""
    if args.seconds:  # sleep(0) takes the timer slack of the system
        time.sleep(args.seconds)
    return {"slept": args.seconds}
