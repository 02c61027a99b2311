"""DSPy programs for any host, over a pipe."""

from bridge.version import __version__

__all__ = ["__version__"]
