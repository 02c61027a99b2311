"""DSPy in the process of its user, who writes it as its documentation does: the baseline of programs of the bridge."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from rounds import Model, Run, now, on_threads

FIELDS = "question, passage -> answer"
SAMPLES = 3
# What the model answers, whatever it is asked: a module reads the fields that it knows.
ANSWERS = {
    **{"answer": "Paris", "reasoning": "So it says.", "rationale": "So they say."},
    **{"next_thought": "It is known.", "next_tool_name": "finish", "next_tool_args": {}},
}
Module = Callable[..., Any]


def dspy(model: Model) -> tuple[Run, list[int]]:
    """DSPy's module. Its model is a server, or an engine that answers at once.

    model: as for the bridge. Its key `program` has the type of the program, `answers` those of the engine.
    """
    import dspy

    settings, module = _ready(model)

    def call(command: str, args: Any) -> Any:
        with dspy.context(**settings):
            return module(**args["inputs"])

    return on_threads(call), []


def parallel(model: Model) -> tuple[Run, list[int]]:
    """DSPy's Parallel, which calls the module for each row of a list on several threads."""
    import dspy

    settings, module = _ready(model)

    def run(command: str, args: Any, width: int, calls: int) -> tuple[float, list[float]]:
        on_rows = dspy.Parallel(num_threads=width, disable_progress_bar=True)
        rows = [(module, {**args["inputs"], "question": f"{args['inputs']['question']} {n}"}) for n in range(calls)]
        with dspy.context(**settings):
            start = now()
            results = on_rows(rows)
            took = now() - start
        assert all(each.answer for each in results)
        return took, []

    return run, []


def _ready(model: Model) -> tuple[dict[str, Any], Module]:
    """Return the settings of DSPy, and the module."""
    import dspy

    assert model
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    server = {name: value for name, value in model.items() if name.startswith("api_")}
    instant = {"engine": Instant(model["answers"][""])} if not server else {}
    lm = dspy.LM(model.get("model", "instant/model"), cache=False, **server, **instant)
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    module = MODULES[model.get("program", {}).get("program_type", "predict")]()
    return {"lm": lm, "adapter": adapter, "trace": None, "disable_history": True}, module


class Instant:
    """An engine of `dspy.LM` that always has the same answer, a map of fields."""

    def __init__(self, answer: dict[str, Any]) -> None:
        texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in answer.items()}
        sections = [f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()]
        self._text = "\n\n".join([*sections, "[[ ## completed ## ]]"])

    def complete(self, request: Any) -> Any:
        from dspy import lm15

        usage = lm15.Usage(input_tokens=1, output_tokens=1)
        message = lm15.Message.assistant(self._text)
        return lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def close(self) -> None:
        """Do nothing; DSPy closes its engines."""


def _simple(name: str) -> Module:
    import dspy

    module: Module = getattr(dspy, name)(FIELDS)
    return module


def _react() -> Module:
    import dspy

    module: Module = dspy.ReAct(FIELDS, [dspy.Tool(lambda: "", name="look", args={}, arg_types={})])
    return module


def _attempts(name: str) -> Module:
    import dspy

    def reward(inputs: Any, prediction: Any) -> float:
        return float(bool(prediction.answer))

    module: Module = getattr(dspy, name)(dspy.Predict(FIELDS), N=SAMPLES, reward_fn=reward, threshold=1.0)

    def run(**inputs: Any) -> Any:
        with dspy.context(trace=[]):  # which the module needs
            return module(**inputs)

    return run


def _sampled(module: Module) -> Callable[..., list[Any]]:
    """Return a function that runs `module` several times, as DSPy's modules do: warm, with numbered rollouts."""

    def run(**inputs: Any) -> list[Any]:
        return [module(**inputs, config={"temperature": 0.7, "rollout_id": number}) for number in range(SAMPLES)]

    return run


def _majority() -> Module:
    import dspy

    sample = _sampled(dspy.Predict(FIELDS))
    return lambda **inputs: dspy.majority([dict(each.items()) for each in sample(**inputs)])


def _multi_chain_comparison() -> Module:
    import dspy

    compare = dspy.MultiChainComparison(FIELDS, M=SAMPLES)
    sample = _sampled(dspy.ChainOfThought(FIELDS))
    return lambda **inputs: compare(sample(**inputs), **inputs)


# By program type.
MODULES: dict[str, Callable[[], Module]] = {
    "predict": partial(_simple, "Predict"),
    "chain_of_thought": partial(_simple, "ChainOfThought"),
    "react": _react,
    "best_of_n": partial(_attempts, "BestOfN"),
    "refine": partial(_attempts, "Refine"),
    "majority": _majority,
    "multi_chain_comparison": _multi_chain_comparison,
}
