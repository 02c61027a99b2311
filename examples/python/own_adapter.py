"""Commands of one's own, beside nothing but the worker's:

python -m bridge worker --adapter own_adapter:adapter     (with this folder on PYTHONPATH)

The name is given by the operator who starts the worker, never by a request.
"""

from __future__ import annotations

import statistics
from typing import Any

import msgspec

from bridge import Adapter, Context, errors

adapter = Adapter("own")


class Numbers(msgspec.Struct):
    """The args of both commands; anything else is refused before they run."""

    values: list[float]


@adapter.command("median", Numbers, lane="inline", idempotent=True)
def median(args: Numbers, context: Context) -> dict[str, float]:
    """The median of some numbers: quick, so on the reading thread."""
    if not args.values:
        raise errors.InvalidArgs("no values", path="args.values")
    return {"median": statistics.median(args.values)}


@adapter.command("remember", Numbers, lane="session")
def remember(args: Numbers, context: Context) -> dict[str, Any]:
    """Adds numbers to the session's: in the order in which the calls came.

    Records count for the session's quota; a durable one's are on disk before the reply leaves.
    """
    records = context.session.records
    numbers = msgspec.json.decode(records.of("numbers").get("all", b"[]"))
    numbers += args.values
    records.put("numbers", "all", msgspec.json.encode(numbers))
    return {"count": len(numbers)}
