"""Engines, which send DSPy's requests to models: one for each kind of provider, and the one that wraps them all."""
