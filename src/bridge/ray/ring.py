"""Which node has a session: the same choice everywhere, of which a change of the nodes moves only a share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

MASK = (1 << 64) - 1


class Ring:
    """Rendezvous hashing: a session belongs to the node with the highest score for it.

    When a node leaves, only its sessions move; when one joins, it takes an equal share from each of the others.
    """

    def __init__(self, nodes: Iterable[str]) -> None:
        self._nodes = [(node, _hash(node)) for node in nodes]

    def owner(self, session_id: str) -> str:
        """Return the node of a session. Raises ValueError if there are no nodes."""
        key = _hash(session_id)
        return max(self._nodes, key=lambda each: (_mixed(key ^ each[1]), each[0]))[0]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _mixed(number: int) -> int:
    """Return a number of 64 bits that depends on each bit of `number`: the finalizer of SplitMix64."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)
