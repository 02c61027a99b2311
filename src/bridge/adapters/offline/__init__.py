"""The embedded language model: it reads instead of generating, without network or weights.

From the ground up: reading (which sentences match), answers (the short answer in them),
options and values (that answer in the type that is asked for), prompt (DSPy's prompts taken
apart and replies printed), engine (all of it as an engine for `dspy.LM`).
"""

from bridge.adapters.offline.engine import MODEL, OfflineReader

__all__ = ["MODEL", "OfflineReader"]
