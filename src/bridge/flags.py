"""Reads the values of flags on the command line. The functions raise what argparse reports as an error of the flag."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """Return a whole number from 1 to 999 999 999."""
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a positive whole number")
    return int(text)


def number(text: str, what: str, most: float) -> float:
    """Return a number from 0 to `most`. what: says in the error what was expected."""
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not {what}")
    return value
