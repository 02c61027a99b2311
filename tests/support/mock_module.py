"""A module that an operator registers, for the conversations with a worker and its doubles."""

from __future__ import annotations

import dspy


class Shout(dspy.Module):
    """Answers a question."""

    def __init__(self) -> None:
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question)
