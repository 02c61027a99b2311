"""Rewards, by which best_of_n and refine choose among predictions: built in, or a function of the host."""

from __future__ import annotations

import sys
from typing import Any

from bridge import errors
from bridge.adapters.dspy.current_run import PassedError, current_run
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.values.inputs import plain

FILLED = "filled"


def reward_of(definition: str | dict[str, str], signature: Signature) -> Any:
    """Return the reward of predictions: a function of a module's arguments and a prediction.

    definition: the argument `reward` of create_program.
    """
    return HostReward(definition["host"], signature) if isinstance(definition, dict) else Filled(signature)


class Filled:
    """The share of outputs that are filled: 1.0 if each of them has a value."""

    def __init__(self, signature: Signature) -> None:
        self._names = [field.python_name for field in signature.outputs]

    def __call__(self, inputs: dict[str, Any], prediction: Any) -> float:
        return sum(_is_filled(prediction.get(name)) for name in self._names) / len(self._names)

    def __str__(self) -> str:
        return "The share of output fields that have a value: not empty, and not null."


class HostReward:
    """The reward that a function of the host returns, which is called as `call_reward`."""

    def __init__(self, name: str, signature: Signature) -> None:
        self._name = name
        self._signature = signature

    def __call__(self, inputs: dict[str, Any], prediction: Any) -> float:
        """Return the host's reward. Raises PassedError with its error, or HandlerError if it is not a finite number."""
        run = current_run.get()
        assert run is not None
        run.check()
        args = {
            "name": self._name,
            "inputs": {field.name: plain(inputs.get(field.python_name)) for field in self._signature.inputs},
            "outputs": {field.name: plain(prediction.get(field.python_name)) for field in self._signature.outputs},
            "session_id": run.context.session.id,
        }
        try:
            return _number(self._name, run.context.call_host("call_reward", args))
        except Exception as error:
            raise PassedError(error) from error

    def __str__(self) -> str:
        return f"A function of the application, {self._name!r}, whose code is not known."


def _number(name: str, value: Any) -> float:
    # An integer may be too large for a float.
    if not isinstance(value, int | float) or not -sys.float_info.max <= value <= sys.float_info.max:
        raise errors.HandlerError(f"the reward {name!r} of the host is {errors.shown(value)}, not a finite number")
    return float(value)


def _is_filled(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value != [] and value != {}
