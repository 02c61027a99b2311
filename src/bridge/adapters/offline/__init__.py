"""The embedded language model: it quotes the inputs instead of generating text, without network or weights.

From the bottom up: reading (which sentences match a question), short_answers (the answer in them), choices and
schema_values (that answer in the type that is asked for), layouts (the formats of prompts and replies), prompt (reads
DSPy's prompts), engine (all of it). It knows neither DSPy's classes nor the bridge's adapter for DSPy.
"""

from bridge.adapters.offline.engine import OfflineReader

__all__ = ["OfflineReader"]
