"""What the fuzz programs have in common: their arguments, and the seed that repeats a run."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable


class Fault(Exception):
    """What must not happen; the text says with which input."""


def main(description: str, run: Callable[[float, int], int], what: str) -> int:
    """Run run(seconds, seed), which returns how many inputs there were or raises Fault; returns
    the exit status. what: of the inputs, for the last line."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    try:
        count = run(options.seconds, options.seed)
    except (Fault, AssertionError) as fault:
        print(f"seed {options.seed}: {fault}", file=sys.stderr)
        return 1
    print(f"{count} {what}")
    return 0
