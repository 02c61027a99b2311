"""Several answers to one task, from which one is made: `dspy.majority` and `dspy.MultiChainComparison`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
from dspy.evaluate import normalize_text

from bridge.adapters.dspy.current_run import rollout
from bridge.adapters.dspy.predictor import predictor

TEMPERATURE = 0.7  # of each answer, as in DSPy, unless the run has an own one


class Majority(dspy.Module):  # type: ignore[misc]  # DSPy is not typed
    """Runs `module` `n` times, and returns the first prediction with the most frequent value of `field`."""

    def __init__(self, module: dspy.Module, n: int, field: str) -> None:
        self.module = module
        self._n = n
        self._field = field

    def forward(self, config: dict[str, Any] | None = None, **inputs: Any) -> dspy.Prediction:
        """Return the prediction. config: settings of the model for this run."""
        return most_frequent([*_samples(self.module, self._n, config, inputs)], self._field)


class Comparison(dspy.MultiChainComparison):  # type: ignore[misc]  # DSPy is not typed
    """Compares the answers of `n` chains of thought, and answers from what they have in common.

    chain: the module that makes one of them. It is not part of this one, whose only predictor is `predict`, as in DSPy.
    """

    def __init__(self, signature: Any, chain: dspy.Module, n: int) -> None:
        super().__init__(signature, M=n)
        self.predict: dspy.Predict = predictor(self.predict.signature)
        self._chain: Callable[[], dspy.Module] = lambda: chain

    def forward(self, config: dict[str, Any] | None = None, **inputs: Any) -> dspy.Prediction:
        """Return the prediction. config: settings of the model for this run."""
        settings = {"temperature": TEMPERATURE, **(config or {})}
        chains = _samples(self._chain(), self.M, config, {**inputs, "demos": self.predict.demos})
        return super().forward([_readable(chain) for chain in chains], config=settings, **inputs)


def most_frequent(predictions: list[dspy.Prediction], field: str) -> dspy.Prediction:
    """Return the first of `predictions` with the most frequent value of `field`.

    Texts count as equal if they differ in case, punctuation, articles and white space only, as in `dspy.majority`.
    """
    values = [normalize_text(str(prediction[field])) for prediction in predictions]
    counted = [value for value in values if value] or values
    return predictions[values.index(max(counted, key=counted.count))]


def _samples(
    module: dspy.Module, n: int, config: dict[str, Any] | None, inputs: dict[str, Any]
) -> list[dspy.Prediction]:
    predictions = []
    with dspy.context(lm=dspy.settings.lm.copy(**{"temperature": TEMPERATURE, **(config or {})})):
        for number in range(n):
            with rollout(number):
                predictions.append(module(**inputs))
    return predictions


def _readable(chain: dspy.Prediction) -> dict[str, Any]:
    """Return the fields of a chain, with the reasoning that DSPy expects to be a text."""
    fields = dict(chain.items())
    return {**fields, "reasoning": str(fields.get("reasoning") or "")}
