"""Which slot gets a call that may go to any."""

from __future__ import annotations

from collections.abc import Sequence
from random import random

from bridge.pool.slots import Slot

# A slot's load is how many of its calls are open. A call that waits counts more than one that runs, but since all
# slots have the same number of threads, the slot with more open calls is the one with the higher weighted load, too.


def choose(slots: Sequence[Slot]) -> Slot | None:
    """Return the less loaded one of two slots taken at random; None if it has no room for a call."""
    count = len(slots)
    if count > 1:
        first = int(random() * count)
        slot, other = slots[first], slots[first - 1 - int(random() * (count - 1))]
        if len(other.calls) < len(slot.calls):
            slot = other
    elif count:
        slot = slots[0]
    else:
        return None
    return slot if len(slot.calls) < slot.capacity else None


def least_loaded(slots: Sequence[Slot]) -> Slot | None:
    """Return the slot with the fewest open calls; None if no slot has room for a call."""
    slot = min(slots, key=lambda each: len(each.calls), default=None)
    return slot if slot is not None and len(slot.calls) < slot.capacity else None
