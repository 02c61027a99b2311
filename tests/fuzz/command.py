"""The command line of the fuzz programs, with a seed that repeats a run."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable


class Fault(Exception):
    """Raised for a defect that was found; the text includes the input."""


def main(description: str, run: Callable[[float, int], int], inputs: str) -> int:
    """Run a fuzz program, and return its exit status.

    run(seconds, seed): returns the number of inputs, or raises Fault. inputs: describes them in the last line.
    """
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
    print(f"{count} {inputs}")
    return 0
