"""Chooses an option as the examples in a prompt do: by the words that go with each of their answers."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from bridge.adapters.offline.reading import WORD


class Example(NamedTuple):
    """An example in a prompt: the texts of its inputs together, and the text of each output by name."""

    text: str
    outputs: dict[str, str]


def choose_like(examples: Sequence[Example], name: str, options: Sequence[Any], text: str) -> Any:
    """Return the option of the output `name` that the examples suggest for a text; None if they suggest nothing.

    Each word of the text that occurs in examples votes for their answers, in shares; its first words count twice.
    """
    named = {str(option): option for option in options}
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        answer = example.outputs.get(name)
        if answer in named:
            for word in _words(example.text):
                answers[word][answer] += 1
    votes: dict[str, float] = defaultdict(float)
    for word in _words(text):
        total = answers[word].total() if word in answers else 0
        for answer, count in answers.get(word, Counter()).items():
            # A word that goes with many answers tells little.
            votes[answer] += count / total / len(answers[word]) * (2 if word.startswith("^") else 1)
    best = max(votes.values(), default=0)
    return next((option for text_of, option in named.items() if best and votes[text_of] == best), None)


def _words(text: str) -> set[str]:
    """Return the words of a text, and its first one and its first two, marked as such."""
    words = [word.lower() for word in WORD.findall(text)]
    return {*words, *(f"^{' '.join(words[:count])}" for count in (1, 2) if len(words) >= count)}
