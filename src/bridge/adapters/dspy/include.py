"""What the result of a run has in addition if the host asks for it: the argument `include`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from bridge.adapters.dspy.own_module import OwnModule
    from bridge.adapters.dspy.prepared import Prepared
    from bridge.adapters.dspy.recorder import Recorder

# The type of the argument in the args of a command.
Include = frozenset[Literal["usage", "cost", "completions", "trajectory", "prompt"]]

NOTHING: Include = frozenset()
RECORDED = frozenset(("usage", "cost", "prompt"))  # what needs a Recorder


def included(
    include: Include, ready: Prepared | OwnModule, prediction: Any, recorder: Recorder | None
) -> dict[str, Any]:
    """Return what a result has in addition. recorder: of the run; needed for what is in RECORDED."""
    return {name: _MAKERS[name](ready, prediction, recorder) for name in sorted(include)}


def _usage(ready: Any, prediction: Any, recorder: Any) -> list[dict[str, Any]]:
    return [exchange.usage for exchange in recorder.exchanges]


def _cost(ready: Any, prediction: Any, recorder: Any) -> float | None:
    cost: float | None = recorder.cost
    return cost


def _prompt(ready: Any, prediction: Any, recorder: Any) -> list[dict[str, Any]]:
    return [exchange.prompt for exchange in recorder.exchanges]


def _completions(ready: Any, prediction: Any, recorder: Any) -> list[dict[str, Any]]:
    """Return the outputs of each completion, the first of which is the result's."""
    completions = getattr(prediction, "_completions", None)
    if completions is None or len(completions) < 2:
        return [ready.outputs(prediction)]
    return [ready.outputs(completions[index]) for index in range(len(completions))]


def _trajectory(ready: Any, prediction: Any, recorder: Any) -> Any:
    return ready.trajectory(prediction)


_MAKERS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "usage": _usage,
    "cost": _cost,
    "completions": _completions,
    "trajectory": _trajectory,
    "prompt": _prompt,
}
