"""The trajectory of an agent's prediction: its steps, as DSPy has them, in the host's names and as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge.adapters.dspy.values.inputs import plain


def trajectory_of(prediction: Any, fields: Mapping[str, str], tools: Mapping[str, str]) -> Any:
    """Return the steps of an agent; None if the prediction has none.

    Those of react are a map (`thought_0`, `tool_name_0`, …), those of rlm and react_v2 a list. fields: the host's names
    of fields, by their names in DSPy. tools: the host's names of tools, by those that the model sees.
    """
    steps = prediction.get("trajectory")
    if isinstance(steps, dict):
        return {
            name: tools.get(value, value) if name.startswith("tool_name_") else plain(value)
            for name, value in steps.items()
        }
    if steps is None and prediction.get("termination_reason") is not None:  # of react_v2
        return [_turn(message, fields, tools) for message in plain(prediction["history"])["messages"]]
    return plain(steps)


def _turn(message: dict[str, Any], fields: Mapping[str, str], tools: Mapping[str, str]) -> dict[str, Any]:
    turn = {fields.get(name, name): value for name, value in message.items()}
    calls = turn.get("tool_calls") or {}
    for call in [*calls.get("tool_calls", ()), *(calls.get("tool_call_results") or {}).get("tool_call_results", ())]:
        if call.get("name") in tools:
            call["name"] = tools[call["name"]]
    return turn
