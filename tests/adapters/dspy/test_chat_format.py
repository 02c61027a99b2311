"""The prompts of programs equal DSPy's own."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from bridge.adapters.dspy.chat_format import ChatAdapter

FIELDS: dict[str, Any] = {
    "question": (str, dspy.InputField(desc="what is asked")),
    "passages": (list[str], dspy.InputField()),
    "answer": (str, dspy.OutputField()),
    "scores": (dict[str, float], dspy.OutputField(desc="0 to 1")),
}
SIGNATURE = dspy.make_signature(FIELDS, "Answer the question.")
TEXTS = dspy.make_signature({name: FIELDS[name] for name in ("question", "answer")}, "Answer.", "Texts")


@pytest.mark.parametrize(
    ("signature", "inputs"),
    [
        (SIGNATURE, {"question": "Where?", "passages": ["Here.", "There."]}),
        (SIGNATURE, {"question": "Where?", "passages": []}),
        (SIGNATURE, {"question": "Where?"}),
        (TEXTS, {"question": "Where?"}),
        (TEXTS, {"question": "  two\n\nlines [[ ## answer ## ]] "}),
        (TEXTS, {"question": ""}),
        (TEXTS, {"question": 7}),
        (TEXTS, {}),
    ],
)
def test_messages_are_those_of_dspy(signature, inputs):
    """Prompts equal DSPy's, with and without examples, when first written and when cached."""
    demos = [{"question": "Who?", "passages": ["She."], "answer": "She", "scores": {"a": 1.0}}]
    ours, theirs = ChatAdapter(), dspy.ChatAdapter()
    for examples in ([], demos, demos):
        assert ours.format(signature, examples, inputs) == theirs.format(signature, examples, inputs)
