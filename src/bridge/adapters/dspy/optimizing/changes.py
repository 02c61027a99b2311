"""What an optimization has changed in a program."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bridge.adapters.dspy.documents import as_example
from bridge.adapters.dspy.state import Learned

if TYPE_CHECKING:
    from bridge.adapters.dspy.signatures import Signature

# The part of a predictor's name that names the variant of a program which contains it, in an ensemble.
_VARIANT = re.compile(r"programs\[\d+\]\.?")


def learned_by(before: dict[str, Learned], after: dict[str, Learned], kept: dict[str, Learned]) -> dict[str, Learned]:
    """Return what the definition of the optimized program holds: `after`, without instructions that are not new.

    kept: what the definition of the program held; instructions that have not changed stay as they are there.
    """
    found = {}
    for name, each in after.items():
        origin = _origin(name, before)
        is_new = each.instructions != before[origin].instructions
        instructions = each.instructions if is_new else kept.get(origin, Learned()).instructions
        if instructions is not None or each.demos:
            found[name] = Learned(instructions, each.demos)
    return found


def changes(before: dict[str, Learned], after: dict[str, Learned], signature: Signature) -> list[dict[str, Any]]:
    """Return what has changed in each predictor that has changed.

    Its instructions before and after, the demos that are new, and how many were removed.
    """
    found = (
        {"predictor": name, **_change(before[_origin(name, before)], each, signature)} for name, each in after.items()
    )
    return [each for each in found if len(each) > 1]


def _origin(name: str, before: dict[str, Learned]) -> str:
    """Return the name that a predictor of the optimized program had before."""
    return name if name in before else _VARIANT.sub("", name, count=1) or "self"


def _change(before: Learned, after: Learned, signature: Signature) -> dict[str, Any]:
    change: dict[str, Any] = {}
    if after.instructions != before.instructions:
        change["instructions"] = {"before": before.instructions, "after": after.instructions}
    added = [as_example(demo, signature) for demo in after.demos if demo not in before.demos]
    removed = sum(demo not in after.demos for demo in before.demos)
    if added:
        change["demos"] = added
    if removed:
        change["removed_demos"] = removed
    return change
