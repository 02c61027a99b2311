"""Ranks the sentences of passages by how well they match a question: words, sentences, BM25.

The bottom layer of the offline reader: text only, no model, nothing random.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAXIMUM_FOUND = 20  # sentences searched for an answer
MAXIMUM_SENTENCE = 1000  # characters; longer ones are cut
MAXIMUM_WORDS = 50  # different words of a question that count, the frequent ones first
MINIMUM_SCORE = 0.25  # share of the question's words; a sentence with less does not answer it
_SATURATION, _LENGTH = 1.2, 0.75  # k1 and b of BM25, the usual values
_CONTEXT = 0.5  # weight of the previous sentence, which "It" and "He" refer to


class Match(NamedTuple):
    """One sentence, its position in the text, and the share (0..1) of the question it covers."""

    sentence: str
    position: int
    score: float


class Reading(NamedTuple):
    """A question and the sentences of its passages, the best match first."""

    question: str
    matches: tuple[Match, ...]

    @property
    def found(self) -> tuple[Match, ...]:
        """Return the best sentences that match well enough to hold an answer."""
        best = self.matches[:MAXIMUM_FOUND]
        return tuple(match for match in best if match.score >= MINIMUM_SCORE)

    @property
    def score(self) -> float:
        """Return the score of the best sentence, 0.0 if none matches well enough or there is no question."""
        return self.found[0].score if self.found and words(self.question) else 0.0


def read(question: str, passages: Iterable[str]) -> Reading:
    """Rank the sentences of `passages` for `question`.

    A question without words of meaning asks what the text is about: the sentences are ranked
    by the words that are frequent in all of them, and each of them counts as a match.
    """
    texts = [sentence for passage in passages for sentence in sentences(passage)]
    if not texts:
        return Reading(question, ())
    text = " ".join(texts)
    asked = words(question) or words(text) or WORD.findall(text)
    common = Counter(map(stem, asked)).most_common(MAXIMUM_WORDS)
    relevance, scores = _rank([one for one, _ in common], texts)
    if not words(question):
        scores = np.ones(len(texts))
    order = np.argsort(-relevance, kind="stable")
    return Reading(question, tuple(Match(texts[i], int(i), float(scores[i])) for i in order))


def _rank(wanted: Sequence[str], texts: Sequence[str]) -> tuple[Any, Any]:
    """Return the BM25 score of each text, and the share of the wanted stems in it, both with context."""
    stemmed = [[stem(word) for word in WORD.findall(text)] for text in texts]
    counts = np.array([[each.count(one) for one in wanted] for each in stemmed], dtype=float)
    holding = (counts > 0).sum(axis=0)
    rarity = np.log1p((len(texts) - holding + 0.5) / (holding + 0.5))
    lengths = np.array([[len(each)] for each in stemmed], dtype=float)
    norm = _SATURATION * (1 - _LENGTH + _LENGTH * lengths / lengths.mean())
    pull = counts * (_SATURATION + 1) / (counts + norm)
    return _with_context(pull) @ rarity, _with_context(np.minimum(counts, 1)).mean(axis=1)


def _with_context(matrix: Any) -> Any:
    before = np.vstack([np.zeros_like(matrix[:1]), matrix[:-1]])
    return np.maximum(matrix, _CONTEXT * before)


# Words and sentences

WORD = re.compile(r"\d+(?:[.,]\d+)*|[^\W_]+(?:['\u2019-][^\W_]+)*")
_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\b[A-Z]\.)(?<!\b[DMS][rst]\.)(?<!\bMrs\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
    r"[\"'”)\]»]*\s+(?=[\"'“(\[«]?[^\Wa-z])|[\n«»]"
)
_MARKER = re.compile(r"\[\[ ## \w+ ## \]\]")
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ions?|ers?|ors?|ed|es|s|e|y)$")
_IRREGULAR = {
    form: base
    for base, forms in {
        "begin": "began begun", "build": "built", "die": "dead death died dies", "eat": "ate",
        "fall": "fell fallen", "find": "found", "fly": "flew flies", "give": "gave given",
        "grow": "grew", "hold": "held", "lay": "lie", "lead": "led", "make": "made",
        "sing": "sang sung", "speak": "spoke spoken", "stand": "stood", "take": "took taken",
        "win": "won", "write": "wrote written writer writes",
    }.items()
    for form in forms.split()
}  # fmt: skip
STOP = frozenset(
    WORD.findall(
        "a about after all also although an and any are as at be because been before but by can "
        "could did do does during each for from had has have he her his how i if in into is it "
        "its many may me more most much my near no not of off on one only or other our over "
        "please she should so some such than that the their them then there these they this "
        "those to under until up was we were what when where which while who whom whose why "
        "will with would you your"
    )
)


def sentences(text: str) -> list[str]:
    """Split `text` at sentence ends and line breaks; DSPy's section markers are dropped."""
    parts = [" ".join(part.split()) for part in _SENTENCE_END.split(_MARKER.sub("\n", text))]
    step = MAXIMUM_SENTENCE
    pieces = (part[cut : cut + step] for part in parts for cut in range(0, len(part), step))
    return [piece for piece in pieces if WORD.search(piece)]


@lru_cache(maxsize=10_000)
def stem(word: str) -> str:
    """Return the word without its most common English endings, in lower case."""
    lower = word.lower().removesuffix("'s").removesuffix("\u2019s")
    return _ENDING.sub("", _IRREGULAR.get(lower, lower))


def stems(text: str) -> frozenset[str]:
    """Return the stems of the words of `text` that carry meaning."""
    return frozenset(map(stem, words(text)))


def words(text: str) -> list[str]:
    """Return the words of `text` that carry meaning, in their order."""
    return [word for word in WORD.findall(text) if word.lower() not in STOP]
