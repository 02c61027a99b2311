"""A module of your own with two stages and retrieval: question → query → passages → answer.

python -m bridge worker --program research=research:Research     (with this folder on PYTHONPATH)

A host runs it like any other program, with its session's model:
execute_program {"program_id": "research", "inputs": {"question": "Where was Mozart born?"}}
"""

from __future__ import annotations

import math
import re
from collections import Counter

import dspy

PASSAGES = [
    "Wolfgang Amadeus Mozart was born in Salzburg in 1756.",
    "Ludwig van Beethoven was born in Bonn in 1770.",
    "The Louvre, in Paris, is the most visited museum in the world.",
    "The Prado is the main museum of Madrid and holds the works of Goya.",
    "Mount Everest, at 8849 metres, is the highest mountain above sea level.",
]


class Corpus:
    """Finds the passages that share rare words with a query (TF-IDF)."""

    def __init__(self, passages: list[str]) -> None:
        self.passages = passages
        self._words = [Counter(_words(passage)) for passage in passages]
        frequency = Counter(word for words in self._words for word in words)
        self._weights = {word: math.log(len(passages) / count) for word, count in frequency.items()}

    def search(self, query: str, k: int) -> list[str]:
        """Return at most `k` passages that have a word of the query, the best first."""
        wanted = _words(query)
        scores = [sum(words[word] * self._weights.get(word, 0.0) for word in wanted) for words in self._words]
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[:k]
        return [self.passages[index] for index in best if scores[index] > 0]


class Research(dspy.Module):
    """Answer a question from a small corpus."""

    def __init__(self) -> None:
        self.corpus = Corpus(PASSAGES)
        self.rewrite = dspy.Predict(dspy.Signature("question -> query", "Write a search query for the question."))
        self.respond = dspy.Predict("question, context: list[str] -> answer")

    def forward(self, question: str, k: int = 2) -> dspy.Prediction:
        query = self.rewrite(question=question).query
        context = self.corpus.search(f"{question} {query}", k)
        answer = self.respond(question=question, context=context).answer
        return dspy.Prediction(answer=answer, passages=context)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
