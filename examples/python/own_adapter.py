"""Your own commands, in addition to the worker's built-in ones:

python -m bridge worker --adapter own_adapter:adapter     (with this folder on PYTHONPATH)

The operator who starts the worker names the adapter; a request cannot.
"""

from __future__ import annotations

import statistics
from typing import Any

import msgspec

from bridge import Adapter, Context, errors

adapter = Adapter("own")


class Numbers(msgspec.Struct):
    """The args of both commands. Requests with other args are refused before a handler runs."""

    values: list[float]


@adapter.command("median", Numbers, lane="inline", idempotent=True)
def median(args: Numbers, context: Context) -> dict[str, float]:
    """Return the median of some numbers. Fast, so it runs inline, on the reader thread."""
    if not args.values:
        raise errors.InvalidArgs("no values", path="args.values")
    return {"median": statistics.median(args.values)}


@adapter.command("remember", Numbers, lane="session")
def remember(args: Numbers, context: Context) -> dict[str, Any]:
    """Add numbers to the session's, in the order of the calls.

    Records count towards the session's quota. Those of a durable session are on disk before the
    reply is sent.
    """
    records = context.session.records
    numbers = msgspec.json.decode(records.of("numbers").get("all", b"[]"))
    numbers += args.values
    records.put("numbers", "all", msgspec.json.encode(numbers))
    return {"count": len(numbers)}
