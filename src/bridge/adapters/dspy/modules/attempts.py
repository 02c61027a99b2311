"""Several attempts at one task, of which the best is the result: `dspy.BestOfN` and `dspy.Refine` for programs.

DSPy's own print to stdout, count failures in the module that all runs share, and return None if every attempt failed.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import dspy
from dspy.predict.refine import OfferFeedback, inspect_modules

from bridge.adapters.dspy.current_run import current_run, rollout
from bridge.adapters.dspy.values.inputs import plain

TEMPERATURE = 1.0  # of each attempt, as in DSPy, unless the run has an own one

Reward = Callable[[dict[str, Any], dspy.Prediction], float]


class _Attempt(NamedTuple):
    reward: float
    prediction: dspy.Prediction
    trace: list[Any]


class BestOfN(dspy.Module):  # type: ignore[misc]  # DSPy is not typed
    """Runs `module` until the reward of an attempt is at least `threshold`, at most `n` times, and returns the best.

    Raises the error of the last attempt if all have failed. Usable from any number of threads.
    """

    def __init__(self, module: dspy.Module, n: int, reward: Reward, threshold: float) -> None:
        self.module = module
        self._n = n
        self._reward = reward
        self._threshold = threshold

    def forward(self, config: dict[str, Any] | None = None, **inputs: Any) -> dspy.Prediction:
        """Return the best prediction. config: settings of the model for this run."""
        lm = dspy.settings.lm.copy(**{"temperature": TEMPERATURE, **(config or {})})
        best: _Attempt | None = None
        failure: Exception | None = None
        advice: dict[str, str] = {}
        for number in range(self._n):
            trace: list[Any] = []
            try:
                with rollout(number), dspy.context(lm=lm, trace=trace):
                    prediction = self._attempt(inputs, advice)
            except Exception as error:  # of a model or a tool: another attempt may succeed
                failure = error
                continue
            attempt = _Attempt(self._reward(inputs, prediction), prediction, trace)
            best = attempt if best is None or attempt.reward > best.reward else best
            _announce(number + 1, self._n, attempt.reward, best.reward)
            if attempt.reward >= self._threshold:
                break
            if number + 1 < self._n:
                with rollout(number), dspy.context(trace=None):
                    advice = self._advice(inputs, attempt) or advice
        if best is None:
            assert failure is not None
            raise failure
        if dspy.settings.trace is not None:
            dspy.settings.trace.extend(best.trace)
        return best.prediction

    def _attempt(self, inputs: dict[str, Any], advice: dict[str, str]) -> dspy.Prediction:
        return self.module(**inputs)

    def _advice(self, inputs: dict[str, Any], attempt: _Attempt) -> dict[str, str]:
        """Return advice for the next attempt: a text for each predictor."""
        return {}


class Refine(BestOfN):
    """Before each further attempt, asks the model for advice about what the last one lacked."""

    def _attempt(self, inputs: dict[str, Any], advice: dict[str, str]) -> dspy.Prediction:
        if not advice:
            return self.module(**inputs)
        hints = {predictor.signature: advice.get(name, "N/A") for name, predictor in self.module.named_predictors()}
        with dspy.context(adapter=_Hinting(dspy.settings.adapter, hints)):
            return self.module(**inputs)

    def _advice(self, inputs: dict[str, Any], attempt: _Attempt) -> dict[str, str]:
        names = {predictor: name for name, predictor in self.module.named_predictors()}
        steps = [
            {"module_name": names[predictor], "inputs": given, "outputs": dict(found)}
            for predictor, given, found in attempt.trace
            if predictor in names
        ]
        facts = {
            "program_code": inspect.getsource(_dspy_class(self.module)),
            "modules_defn": inspect_modules(self.module),
            "program_inputs": inputs,
            "program_trajectory": steps,
            "program_outputs": dict(attempt.prediction),
            "reward_code": str(self._reward),
            "target_threshold": self._threshold,
            "reward_value": attempt.reward,
            "module_names": [*names.values()],
        }
        texts = {
            name: value if isinstance(value, str) else json.dumps(plain(value), indent=2)
            for name, value in facts.items()
        }
        try:
            found: dict[str, str] = dspy.Predict(OfferFeedback)(**texts).advice
        except dspy.DSPyError:  # of the model, or of its reply: the next attempt is made without advice
            return {}
        return found


class _Hinting:
    """An adapter that gives each predictor its advice as a further input. hints: the advice by the signature."""

    def __init__(self, adapter: Any, hints: dict[Any, str]) -> None:
        self._adapter = adapter
        self._hints = hints

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: dict[str, Any]) -> Any:
        hint = self._hints.get(signature, "N/A")
        field = dspy.InputField(desc="A hint to the module from an earlier run")
        return self._adapter(lm, lm_kwargs, signature.append("hint_", field), demos, {**inputs, "hint_": hint})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)


def _announce(done: int, total: int, score: float, best: float) -> None:
    run = current_run.get()
    if run is not None:
        data = {"phase": "attempts", "done": done, "total": total, "score": score, "best": best}
        run.context.emit("progress", data)


def _dspy_class(module: dspy.Module) -> type:
    """Return DSPy's class of `module`: what this package adds to it is of no use to a model."""
    return next(kind for kind in type(module).__mro__ if kind.__module__.startswith("dspy."))
