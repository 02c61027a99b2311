"""`dspy.Predict` for the programs of hosts, whose signatures and inputs are known to be right."""

from __future__ import annotations

from typing import Any

import dspy

from bridge.adapters.dspy import language_model


class Predictor(dspy.Predict):  # type: ignore[misc]  # DSPy is not typed
    """A `dspy.Predict` that does not check inputs, which `Prepared.arguments` has done.

    DSPy compares them with the signature again, and looks for types of fields that no host can declare.
    """

    def forward(
        self, config: dict[str, Any] | None = None, demos: list[Any] | None = None, **inputs: Any
    ) -> dspy.Prediction:
        """Return the prediction. config: settings of the model for this call. demos: instead of the predictor's."""
        settings = dspy.settings
        completions = settings.adapter(
            self.lm or settings.lm,
            lm_kwargs={**self.config, **(config or {})},
            signature=self.signature,
            demos=self.demos if demos is None else demos,
            inputs=inputs,
        )
        prediction = dspy.Prediction.from_completions(completions, signature=self.signature)
        trace = settings.trace
        if trace is not None and len(trace) < settings.max_trace_size:
            trace.append((self, inputs, prediction))
        return prediction


# Optimizers show models the names of classes, and the source of those that DSPy does not have.
Predictor.__name__ = dspy.Predict.__name__


def predictor(signature: Any) -> dspy.Predict:
    """Return a module for a DSPy signature that was made from a host's."""
    return Predictor(signature) if language_model.IS_COMPARED else dspy.Predict(signature)
