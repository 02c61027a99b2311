"""`dspy.Predict` for the programs of hosts, whose signatures and inputs are known to be right."""

from __future__ import annotations

from typing import Any

import dspy

from bridge.adapters.dspy import language_model


class Predictor(dspy.Predict):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.Predict` that does not check inputs, which `Prepared.arguments` has done.

    DSPy compares them with the signature again, and looks for types of fields that no host can declare.
    """

    def forward(self, config: dict[str, Any] | None = None, **inputs: Any) -> Any:
        settings = dspy.settings
        completions = settings.adapter(
            settings.lm,
            lm_kwargs={**self.config, **(config or {})},
            signature=self.signature,
            demos=self.demos,
            inputs=inputs,
        )
        return dspy.Prediction.from_completions(completions, signature=self.signature)


def predictor(signature: Any) -> dspy.Predict:
    """Return a module for a DSPy signature that was made from a host's."""
    return Predictor(signature) if language_model.IS_COMPARED else dspy.Predict(signature)
