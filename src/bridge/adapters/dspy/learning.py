"""What a program has learned, moved between its definition and the predictors of its DSPy module.

Predictors have their names in DSPy (`predict`, `extract.predict`), fields their labels, and values the types that every
wire format has.
"""

from __future__ import annotations

from typing import Any

from bridge.adapters.dspy.prompt_fields import label_of
from bridge.adapters.dspy.signatures import Signature
from bridge.adapters.dspy.state import Learned
from bridge.adapters.dspy.values.checks import check_of
from bridge.adapters.dspy.values.inputs import plain


def apply(learned: dict[str, Learned], module: Any, signature: Signature) -> None:
    """Set the instructions and the demos of the predictors of `module`, which was created for `signature`.

    Raises InvalidArgs for a predictor or a field that the module does not have, and for a value of a wrong type.
    """
    predictors = dict(module.named_predictors())
    checks = {field.label: check_of(field, signature) for field in (*signature.inputs, *signature.outputs)}
    for name, each in learned.items():
        predictor = predictors[name]
        if each.instructions is not None:
            predictor.signature = predictor.signature.with_instructions(each.instructions)
        names = _python_names(predictor.signature)
        predictor.demos = [
            {names[label]: checks[label].value(value) if label in checks else value for label, value in demo.items()}
            for demo in each.demos
        ]


def of(module: Any) -> dict[str, Learned]:
    """Return what the predictors of `module` have learned: the instructions and the demos of each."""
    found = {}
    for name, predictor in module.named_predictors():
        labels = {each: label for label, each in _python_names(predictor.signature).items()}
        demos = tuple(
            {labels[key]: plain(value) for key, value in demo.items() if key in labels} for demo in predictor.demos
        )
        found[name] = Learned(predictor.signature.instructions, demos)
    return found


def _python_names(signature: Any) -> dict[str, str]:
    return {label_of(name, field): name for name, field in signature.fields.items()}
