"""Chooses the option that fits a reading best: by feelings, by yes and no, or by shared words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from bridge.adapters.offline.reading import MAXIMUM_FOUND, WORD, Reading, stem, stems
from bridge.adapters.offline.short_answers import agrees, answer

if TYPE_CHECKING:
    from collections.abc import Sequence

SIGNS = {
    word: sign
    for sign, signed in {
        1: "positive pos good happy joy favourable favorable",
        0: "neutral mixed",
        -1: "negative neg bad sad anger angry unfavourable unfavorable",
    }.items()
    for word in signed.split()
}
_POSITIVE = stems(
    "amazing awesome beautiful best brilliant charming comfortable delicious delight easy enjoy "
    "excellent fantastic fast favourite fine friendly fun glad good great happy helpful impressed "
    "like love lovely nice perfect pleasant pleased recommend reliable satisfied superb thank "
    "useful wonderful worth"
)
_NEGATIVE = stems(
    "angry annoying awful bad boring broke broken complaint crash defective delay dirty "
    "disappointed disappointing disgusting error fail failure hate horrible late lost nasty noisy "
    "painful poor refund regret rude sad slow terrible ugly unhappy useless waste worse worst wrong"
)
_NEGATION = re.compile(r"^(?:not|no|never|neither|nor|without|hardly)$|n['\u2019]t$")
_TRUTH = {"yes": True, "true": True, "no": False, "false": False}
_UNDECIDED = frozenset({"other", "unknown", "none", "neutral", "unclear", "n/a"})


def choose(options: Sequence[Any], reading: Reading) -> Any:
    """Return the option that fits the inputs best, the first one of equals.

    Options that name a feeling go by the balance of good and bad words, yes and no by the
    question; all others by the words that they share with the answer and the sentences.
    """
    named = {str(option).lower(): option for option in options}
    signs = {SIGNS[name]: option for name, option in reversed(named.items()) if name in SIGNS}
    if len(signs) > 1:
        return signs.get(sentiment(everything(reading)), options[0])
    undecided = [option for name, option in named.items() if name in _UNDECIDED]
    truths = {_TRUTH[name]: option for name, option in named.items() if name in _TRUTH}
    if len(truths) > 1 and (reading.found or not undecided):
        return truths[agrees(reading)]
    texts = [answer(reading).text, *(match.sentence for match in reading.matches[:MAXIMUM_FOUND])]
    likeness = [_likeness(str(option), texts, reading.question) for option in options]
    if undecided and not any(likeness):
        return undecided[0]
    return options[likeness.index(max(likeness))]


def _likeness(option: str, texts: Sequence[str], question: str) -> float:
    """Return how many words are shared with the short answer and, with less weight, with the sentences by rank."""
    likeness = sum(overlap(option, text) / rank for rank, text in enumerate(texts, 1))
    return likeness + overlap(option, question) / (len(texts) + 1)


def overlap(text: str, other: str) -> float:
    """Return the share (0..1) of the words of `text` that occur in `other` too."""
    wanted = frozenset(map(stem, WORD.findall(text)))
    return len(wanted.intersection(map(stem, WORD.findall(other)))) / max(1, len(wanted))


def sentiment(text: str) -> int:
    """Return the sign of good minus bad words; a negation shortly before a word reverses it."""
    spoken = [stem(word) for word in WORD.findall(text)]
    balance = 0
    for index, word in enumerate(spoken):
        sign = (word in _POSITIVE) - (word in _NEGATIVE)
        negated = any(map(_NEGATION.search, spoken[max(0, index - 3) : index]))
        balance += -sign if negated else sign
    return (balance > 0) - (balance < 0)


def everything(reading: Reading) -> str:
    """Return the question and all sentences in the order of the text."""
    ordered = sorted(reading.matches, key=lambda match: match.position)
    return " ".join([reading.question, *(match.sentence for match in ordered)])
