"""Doubles of workers, for the tests of applications. They need no DSPy, no model and no other process."""

from bridge.testing.script import Recorded
from bridge.testing.worker import Mock

__all__ = ["Mock", "Recorded"]
