"""A module that finds texts in an index of the session. It calls no model."""

from __future__ import annotations

from typing import Any

import dspy

from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.retrieval.search import search
from bridge.adapters.dspy.signatures import Signature


class Retrieve(dspy.Module):  # type: ignore[misc]  # DSPy is not typed
    """Returns the `k` texts of an index that are most similar to the input, as a list or as one text."""

    def __init__(self, signature: Signature, index_id: str, k: int) -> None:
        self._query = signature.inputs[0].python_name
        self._found = signature.outputs[0].python_name
        self._is_text = signature.outputs[0].type is str
        self._index_id = index_id
        self._k = k

    def forward(self, **inputs: Any) -> dspy.Prediction:
        run = current_run.get()
        if run is None:
            raise RuntimeError("an index was searched outside of a run")
        run.check()
        try:
            texts = search(run.context, self._index_id, inputs[self._query], self._k)
        except Exception as error:  # DSPy's modules would handle it
            raise PassedError(error) from error
        return dspy.Prediction(**{self._found: "\n\n".join(texts) if self._is_text else texts})
