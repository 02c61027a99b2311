"""A module of two stages, which the tests register as a program: workers have this folder on PYTHONPATH."""

from __future__ import annotations

import dspy

from bridge.adapters.dspy import host_tools


class Advice(dspy.Module):
    """Choose a city, ask the host for its weather, and give advice."""

    def __init__(self) -> None:
        self.choose = dspy.Predict("question -> answer")
        self.advise = dspy.Predict("question, weather -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        city = self.choose(question=question).answer
        weather = host_tools()[0](city=city)
        answer = self.advise(question=question, weather=weather).answer
        return dspy.Prediction(answer=answer, weather=weather)
