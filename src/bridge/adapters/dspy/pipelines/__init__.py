"""Pipelines: programs whose outputs are inputs of others, as hosts send them, in their order, and as DSPy's module."""
